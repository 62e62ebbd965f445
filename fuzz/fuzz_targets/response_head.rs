#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use monoio_codec::{Decoded, Decoder};
use monoio_http::{
    common::{body::StreamHint, error::HttpError},
    h1::codec::decoder::{DecodeError, DirectHeadDecoder},
};
use tidegate::http::{BodyLength, HeadError, Method, ResponseHead, parse_response};
use tidegate_fuzz::{
    MAX_INPUT_SIZE, Outcome, cutting_changes_nothing, printing_and_parsing_gives_the_same, sorted,
};

fuzz_target!(|input: &[u8]| {
    // The first byte says what was asked.
    let Some((&first, input)) = input.split_first() else {
        return;
    };
    let method = match first {
        b'H' => Method::Head,
        _ => Method::Get,
    };
    let input = &input[..input.len().min(MAX_INPUT_SIZE)];
    let parse = |input: &[u8]| parse_response(input, method);
    let outcome = parse(input);
    cutting_changes_nothing(input, &outcome, parse, same);
    if let Ok(Some((head, size))) = &outcome {
        assert!(*size <= input.len());
        let first_line = format!("{} {} x", head.version.as_str(), head.status);
        let same = |again: &ResponseHead| same(again, head);
        printing_and_parsing_gives_the_same(&first_line, &head.headers, parse, same);
    }
    compare(input, method, &outcome);
});

fn same(one: &ResponseHead, other: &ResponseHead) {
    assert_eq!(one.status, other.status);
    assert_eq!(one.version, other.version);
    assert_eq!(one.body, other.body);
    assert_eq!(one.content_length, other.content_length);
    assert_eq!(one.keep_alive, other.keep_alive);
    assert!(one.headers.iter().eq(other.headers.iter()));
}

fn compare(input: &[u8], method: Method, ours: &Outcome<ResponseHead>) {
    let mut buffer = BytesMut::from(input);
    let theirs = DirectHeadDecoder::default().decode(&mut buffer);
    match (ours, theirs) {
        (Ok(Some((head, size))), Ok(Decoded::Some((parts, body)))) => {
            assert_eq!(*size, input.len() - buffer.len());
            assert_eq!(head.status, parts.status.as_u16());
            assert_eq!(head.version.as_str(), format!("{:?}", parts.version));
            let ours = head
                .headers
                .iter()
                .map(|(name, value)| (name, value.as_bytes()));
            let theirs = parts
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes()));
            assert_eq!(sorted(ours), sorted(theirs));
            match (head.body, body.hint()) {
                // It waits for bodies that never come (RFC 9112 §6.3, rules 1 and 2).
                (BodyLength::Empty, _) if has_no_body(method, head.status) => {}
                (BodyLength::Empty, StreamHint::None) => assert_eq!(head.content_length, Some(0)),
                (BodyLength::Exactly(length), StreamHint::Fixed) => {
                    assert_eq!(head.content_length, Some(length));
                    let theirs = parts.headers["content-length"]
                        .to_str()
                        .expect("it read it");
                    assert_eq!(theirs.parse(), Ok(length));
                }
                (BodyLength::Chunked, StreamHint::Stream) => {}
                // It takes a body without length for none: that cuts it off unseen (rule 8).
                (BodyLength::UntilClose, StreamHint::None) => {}
                (ours, _) => panic!("we say {ours:?}"),
            }
        }
        (Ok(None), Ok(Decoded::Insufficient)) => {}
        (Err(_), Err(_)) => {}
        // It knows 96 fields at most.
        (Ok(Some((head, _))), Err(HttpError::H1DecodeError(DecodeError::Parse(_)))) => {
            assert!(head.headers.len() > 96);
        }
        // Equal lengths in one list are one length (RFC 9112 §6.3); it knows no lists.
        (Ok(Some((head, _))), Err(HttpError::H1DecodeError(DecodeError::Header))) => {
            let first = head.headers.get("content-length").unwrap_or_default();
            assert!(first.contains(','));
        }
        (Err(error), Ok(_)) => assert!(is_stricter(error), "only we refuse: {error}"),
        (ours, theirs) => panic!("we: {ours:?}, they: {}", theirs.is_ok()),
    }
}

fn has_no_body(method: Method, status: u16) -> bool {
    method == Method::Head || matches!(status, 100..=199 | 204 | 304)
}

/// What we refuse and monoio-http passes on, or waits for the rest of.
fn is_stricter(error: &HeadError) -> bool {
    match error {
        // It has no limits, and waits for more.
        HeadError::TooLarge => true,
        // It knows fewer fields and the same versions; the others are about requests.
        HeadError::TooManyHeaders
        | HeadError::UnsupportedVersion
        | HeadError::ExpectationFailed
        | HeadError::TlsHello => false,
        HeadError::Bad { reason } => matches!(
            *reason,
            // Some readers end lines there, so a field could hide behind it.
            "a bare line feed"
            // httparse skips them; no server sends them, so we are out of step.
            | "an empty line before the first"
            // We never ask for one.
            | "another protocol, unasked"
            // It takes the first field that it understands.
            | "differing Content-Length" | "repeated Transfer-Encoding"
            | "both Content-Length and Transfer-Encoding" | "Transfer-Encoding in HTTP/1.0"
            // It treats `identity` as absent; RFC 9112 has no such coding any more.
            | "a Transfer-Encoding other than chunked"
            // It looks at the first length only, and at none when there is a coding.
            | "malformed Content-Length"
        ),
    }
}
