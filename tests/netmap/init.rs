//! The program as the only one of a small virtual machine: `/init` of an initramfs, beside `/netmap.ko`.

use std::ffi::CString;
use std::os::fd::AsRawFd;

/// Whether we are the first process of a machine. In a container there is one, too; what tells them apart is the kernel's own
/// thread beside a machine's, which has the second number (`kthreadd`).
pub fn is_init() -> bool {
    // SAFETY: asks whether there is such a process, and sends nothing.
    std::process::id() == 1 && unsafe { libc::kill(2, 0) } == 0
}

/// What a first process has to do: the kernel's file systems, and the modules that lie in the root folder.
pub fn set_up() {
    for (kind, folder) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let _ = std::fs::create_dir(folder);
        let [kind_c, folder_c] = [kind, folder].map(|text| CString::new(text).unwrap_or_default());
        // SAFETY: the kernel reads three strings, which live until the call returns.
        let done =
            unsafe { libc::mount(kind_c.as_ptr(), folder_c.as_ptr(), kind_c.as_ptr(), 0, std::ptr::null()) };
        if done != 0 {
            println!("note  {folder}: {}", std::io::Error::last_os_error());
        }
    }
    let Ok(entries) = std::fs::read_dir("/") else { return };
    let mut modules: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    modules.retain(|path| path.extension().is_some_and(|extension| extension == "ko"));
    // Those that netmap needs can be named in front of it: 1-veth.ko.
    modules.sort();
    for path in modules {
        let loaded = std::fs::File::open(&path).and_then(|file| {
            // SAFETY: the kernel reads the file and an empty string.
            let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
            if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
        println!("note  {}: {loaded:?}", path.display());
    }
}

/// A first process must not end: the machine is switched off.
pub fn switch_off() -> ! {
    // SAFETY: neither touches memory of ours.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    loop {
        std::thread::park();
    }
}
