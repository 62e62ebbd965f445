//! The `Date` field (RFC 9110 §6.6.1), written once a second and not once a response.

use std::cell::RefCell;

use crate::sys::{coarse_seconds, coarse_time};

thread_local! {
    static TODAY: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

pub(super) fn append(fields: &mut Vec<u8>) {
    let second = coarse_seconds();
    TODAY.with_borrow_mut(|(written, line)| {
        if *written != second || line.is_empty() {
            *written = second;
            *line = format!("Date: {}\r\n", httpdate::fmt_http_date(coarse_time()));
        }
        fields.extend_from_slice(line.as_bytes());
    });
}
