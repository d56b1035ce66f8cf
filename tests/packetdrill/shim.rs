//! The functions of libutcp.so, which is loaded into this process: what an unmodified program calls.

use std::ffi::CString;
use std::path::Path;

use libc::{
    c_char, c_int, c_uint, c_ulong, c_void, epoll_event, iovec, msghdr, nfds_t, off_t, pollfd, size_t,
    sockaddr, socklen_t, ssize_t,
};

macro_rules! functions {
    ($($name:ident($($arg:ty),*) -> $result:ty;)*) => {
        /// One pointer for each name.
        #[derive(Clone, Copy)]
        pub struct Shim {
            $(pub $name: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl Shim {
            /// Loads the library. Its settings have to be in the environment by then.
            ///
            /// # Errors
            /// It can't be loaded, or lacks a name.
            pub fn load(path: &Path) -> Result<Self, String> {
                let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
                // SAFETY: a NUL-terminated path; the library's constructors are ours.
                let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                if library.is_null() {
                    return Err(last_error());
                }
                Ok(Self {
                    $($name: {
                        let found = find(library, stringify!($name))?;
                        // SAFETY: libutcp.so exports libc's functions with libc's signatures, as written below.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $result>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    socket(c_int, c_int, c_int) -> c_int;
    bind(c_int, *const sockaddr, socklen_t) -> c_int;
    listen(c_int, c_int) -> c_int;
    accept4(c_int, *mut sockaddr, *mut socklen_t, c_int) -> c_int;
    accept(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    connect(c_int, *const sockaddr, socklen_t) -> c_int;
    shutdown(c_int, c_int) -> c_int;
    close(c_int) -> c_int;
    read(c_int, *mut c_void, size_t) -> ssize_t;
    readv(c_int, *const iovec, c_int) -> ssize_t;
    recv(c_int, *mut c_void, size_t, c_int) -> ssize_t;
    recvfrom(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t;
    recvmsg(c_int, *mut msghdr, c_int) -> ssize_t;
    write(c_int, *const c_void, size_t) -> ssize_t;
    writev(c_int, *const iovec, c_int) -> ssize_t;
    send(c_int, *const c_void, size_t, c_int) -> ssize_t;
    sendto(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
    sendmsg(c_int, *const msghdr, c_int) -> ssize_t;
    sendfile(c_int, c_int, *mut off_t, size_t) -> ssize_t;
    splice(c_int, *mut off_t, c_int, *mut off_t, size_t, c_uint) -> ssize_t;
    getsockopt(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
    setsockopt(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
    dup(c_int) -> c_int;
    fcntl(c_int, c_int, usize) -> c_int;
    ioctl(c_int, c_ulong, usize) -> c_int;
    poll(*mut pollfd, nfds_t, c_int) -> c_int;
    epoll_ctl(c_int, c_int, c_int, *mut epoll_event) -> c_int;
    epoll_wait(c_int, *mut epoll_event, c_int, c_int) -> c_int;
}

fn find(library: *mut c_void, name: &str) -> Result<*mut c_void, String> {
    let symbol = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: a library that is loaded and a NUL-terminated name.
    let found = unsafe { libc::dlsym(library, symbol.as_ptr()) };
    if found.is_null() { Err(format!("the library has no {name}")) } else { Ok(found) }
}

fn last_error() -> String {
    // SAFETY: dlerror gives a NUL-terminated text or null.
    unsafe {
        let text: *mut c_char = libc::dlerror();
        if text.is_null() {
            return "dlopen failed".into();
        }
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}
