//! The `Date` field (RFC 9110 §6.6.1), written once a second and not once a response.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

thread_local! {
    static TODAY: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

pub(super) fn append(fields: &mut Vec<u8>) {
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    TODAY.with_borrow_mut(|(written, line)| {
        if *written != second || line.is_empty() {
            *written = second;
            *line = format!("Date: {}\r\n", httpdate::fmt_http_date(now));
        }
        fields.extend_from_slice(line.as_bytes());
    });
}
