//! Fuzzing: one target per parser of foreign bytes. Run one for a minute from the repository's root:
//!
//! ```text
//! cargo +nightly fuzz run request_head -- -dict=fuzz/http.dict -max_total_time=60
//! ```
//!
//! Each target holds that nothing panics, that what was printed parses to the same value, and that how the
//! input was cut changes nothing. `request_head`, `response_head` and `chunked_body` also read the input with
//! monoio-http. Where the two disagree, either we are wrong, or the target lists the difference with its
//! reason; an unlisted one is a crash. `fuzz/corpus/<target>/` holds a few seeds written by hand.

use std::fmt::Debug;

use tidegate::http::{HeadError, Headers};

/// What became of a head: `None` if it is not whole, else its size as well.
pub type Outcome<Head> = Result<Option<(Head, usize)>, HeadError>;

/// Of its beginning, a head says nothing else than of itself.
pub fn cutting_changes_nothing<Head: Debug>(
    input: &[u8],
    whole: &Outcome<Head>,
    parse: impl Fn(&[u8]) -> Outcome<Head>,
    same: impl Fn(&Head, &Head),
) {
    for cut in cuts(input.len()) {
        match (parse(&input[..cut]), whole) {
            (Ok(None), Ok(Some((_, size)))) => assert!(cut < *size),
            (Ok(None), _) => {}
            (Ok(Some((part, part_size))), Ok(Some((head, size)))) => {
                assert_eq!(part_size, *size);
                same(&part, head);
            }
            (Err(part), Err(error)) => assert_eq!(part, *error),
            (part, _) => panic!("{part:?} of {cut} bytes, {whole:?} of all"),
        }
    }
}

pub fn printing_and_parsing_gives_the_same<Head: Debug>(
    first_line: &str,
    headers: &Headers,
    parse: impl Fn(&[u8]) -> Outcome<Head>,
    same: impl Fn(&Head),
) {
    let mut text = format!("{first_line}\r\n");
    for (name, value) in headers.iter() {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    match parse(text.as_bytes()) {
        Ok(Some((again, size))) => {
            assert_eq!(size, text.len());
            same(&again);
        }
        // Every invalid byte was replaced by three, and a blank put after each colon.
        Err(HeadError::TooLarge) => {}
        other => panic!("{other:?}"),
    }
}

/// Where to cut an input: everywhere in a tiny one, at a dozen places in a larger one. Inputs have all sizes,
/// so the places vary.
pub fn cuts(size: usize) -> impl Iterator<Item = usize> {
    (0..size).step_by(size / 12 + 1)
}

/// The longest head given to monoio-http, which panics on longer field names.
pub const MAX_INPUT_SIZE: usize = 60 * 1024;

/// Fields in one order: monoio-http's map forgets how names were interleaved.
pub fn sorted<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value).into_owned().into_bytes();
            (name.to_ascii_lowercase(), value)
        })
        .collect();
    // Stable, so the order of equal names counts.
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}
