//! Messages with control data, and many at once.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the numbers of a script are small"
)]

use std::mem::zeroed;
use std::ptr;

use libc::c_int;

use crate::calls::{message, result};
use crate::names::message_flags;
use crate::words::{Words, bytes_of, shown};

/// The control data of `header`, piece by piece.
fn controls(header: &libc::msghdr) -> String {
    let mut all = String::new();
    // SAFETY: the kernel, or who stands in for it, filled the control buffer; the macros stay inside.
    unsafe {
        let mut one = libc::CMSG_FIRSTHDR(header);
        while !one.is_null() {
            let len = (*one).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let bytes = std::slice::from_raw_parts(libc::CMSG_DATA(one), len);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            all.push_str(&format!(" [{} {} {hex}]", (*one).cmsg_level, (*one).cmsg_type));
            one = libc::CMSG_NXTHDR(header, one);
        }
    }
    all
}

/// `message NAME COUNT [room:N] [flags]`: recvmsg with a control buffer (256 bytes), and all that it says.
pub fn receive(fd: c_int, words: &Words) -> String {
    let mut bytes = vec![0u8; usize::try_from(words.number(2)).expect("a size")];
    let mut control = [0u64; 32];
    let room = words.iter().find_map(|word| word.strip_prefix("room:")?.parse().ok()).unwrap_or(256);
    let list = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let mut header = message(&list);
    // SAFETY: all zero is a valid sockaddr_storage.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    (header.msg_name, header.msg_namelen) = ((&raw mut name).cast(), size_of_val(&name) as u32);
    (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), room);
    // SAFETY: every buffer is as long as the header says.
    let value = unsafe {
        libc::recvmsg(fd, &raw mut header, message_flags(words.iter().skip(3)) | libc::MSG_DONTWAIT)
    };
    if value < 0 {
        return result(value);
    }
    let got = bytes.get(..usize::try_from(value).unwrap_or(0)).unwrap_or_default();
    format!(
        "{value} {} name {} flags {:x} control {}{}",
        shown(got),
        header.msg_namelen,
        header.msg_flags,
        header.msg_controllen,
        controls(&header)
    )
}

/// `recvmmsg NAME COUNT SIZE [timeout:MS] [flags]`
pub fn receive_many(fd: c_int, words: &Words) -> String {
    let (count, size) = (words.number(2) as usize, words.number(3) as usize);
    let mut pieces = vec![vec![0u8; size]; count];
    let lists: Vec<[libc::iovec; 1]> = pieces
        .iter_mut()
        .map(|piece| [libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: size }])
        .collect();
    let mut headers: Vec<libc::mmsghdr> =
        lists.iter().map(|list| libc::mmsghdr { msg_hdr: message(list), msg_len: 0 }).collect();
    let ms = words.iter().find_map(|word| word.strip_prefix("timeout:")?.parse::<i64>().ok());
    let mut time =
        libc::timespec { tv_sec: ms.unwrap_or(0) / 1000, tv_nsec: ms.unwrap_or(0) % 1000 * 1_000_000 };
    let timeout = if ms.is_some() { &raw mut time } else { ptr::null_mut() };
    let flags = message_flags(words.iter().skip(4));
    // SAFETY: a list as long as said, and a timeout or none.
    let value = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count as u32, flags, timeout) };
    if value < 0 {
        return result(value as isize);
    }
    let each = headers.iter().zip(&pieces).take(value as usize);
    let texts: Vec<String> = each.map(|(header, piece)| shown(&piece[..header.msg_len as usize])).collect();
    format!("{value} {}", texts.join(" "))
}

/// `sendmmsg NAME DATA… [flags]`: a message for each; `null` is one whose buffer leads nowhere.
pub fn send_many(fd: c_int, words: &Words) -> String {
    let data: Vec<&str> =
        words.iter().skip(2).filter(|word| *word == "null" || word.starts_with(['"', 'b'])).collect();
    let pieces: Vec<Vec<u8>> = data.iter().map(|word| bytes_of(word)).collect();
    let lists: Vec<[libc::iovec; 1]> = data
        .iter()
        .zip(&pieces)
        .map(|(word, piece)| {
            let base = if *word == "null" { ptr::null() } else { piece.as_ptr() };
            [libc::iovec { iov_base: base.cast_mut().cast(), iov_len: piece.len() }]
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> =
        lists.iter().map(|list| libc::mmsghdr { msg_hdr: message(list), msg_len: 0 }).collect();
    let flags = message_flags(words.iter().skip(2));
    // SAFETY: a list as long as said; what leads nowhere is only looked at by the kernel, or who stands in for it.
    let value = unsafe { libc::sendmmsg(fd, headers.as_mut_ptr(), headers.len() as u32, flags) };
    let lengths: Vec<String> = headers.iter().map(|header| header.msg_len.to_string()).collect();
    format!("{} lengths {}", result(value as isize), lengths.join(" "))
}

/// `sendcmsg NAME DATA LEVEL TYPE BYTES [length:N]`: sendmsg with a piece of control data, whose length may be wrong.
pub fn send_control(fd: c_int, words: &Words) -> String {
    let bytes = words.bytes(2);
    let list = [libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }];
    let mut control = [0u64; 16];
    let mut header = message(&list);
    let data = words.number(5) as u32;
    header.msg_control = control.as_mut_ptr().cast();
    // SAFETY: scripts ask for less than the buffer has.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(data) as _;
        let one = libc::CMSG_FIRSTHDR(&raw const header);
        ((*one).cmsg_level, (*one).cmsg_type) = (words.number(3) as c_int, words.number(4) as c_int);
        let told = words.iter().find_map(|word| word.strip_prefix("length:")?.parse::<u32>().ok());
        (*one).cmsg_len = told.unwrap_or(libc::CMSG_LEN(data)) as _;
        result(libc::sendmsg(fd, &raw const header, 0))
    }
}
