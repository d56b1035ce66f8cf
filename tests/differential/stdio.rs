//! libc's stdio on a script's descriptor: a stream of its own on a copy of it, as programs that mix both do.

use libc::c_int;

use crate::calls::result;
use crate::words::Words;

unsafe extern "C" {
    fn dprintf(fd: c_int, format: *const libc::c_char, ...) -> c_int;
}

/// `print NAME DATA` (fdopen, fwrite, fclose), `getline NAME COUNT` (fgets), `dprintf NAME DATA`
pub fn run(fd: c_int, words: &Words) -> String {
    let mut data = if words.first() == "getline" { Vec::new() } else { words.bytes(2) };
    data.push(0);
    // SAFETY: a copy of the script's descriptor that the stream owns; the strings end with 0, the buffer is as long as said.
    unsafe {
        if words.first() == "dprintf" {
            return result(dprintf(fd, c"%s".as_ptr(), data.as_ptr()) as isize);
        }
        let print = words.first() == "print";
        let stream = libc::fdopen(libc::dup(fd), if print { c"w" } else { c"r" }.as_ptr());
        if stream.is_null() {
            return result(-1);
        }
        let said = if print {
            result(libc::fwrite(data.as_ptr().cast(), 1, data.len() - 1, stream).cast_signed())
        } else {
            let mut line = [0; 64];
            let got = libc::fgets(line.as_mut_ptr(), (words.number(2) as c_int).clamp(0, 63) + 1, stream);
            if got.is_null() { result(-1) } else { format!("{:?}", std::ffi::CStr::from_ptr(got)) }
        };
        let closed = libc::fclose(stream);
        format!("{said}, {closed}")
    }
}
