#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use monoio_codec::{Decoded, Decoder};
use monoio_http::{
    common::{body::StreamHint, error::HttpError, request::Request},
    h1::codec::decoder::{DecodeError, DirectWrapper, GenericHeadDecoder, RequestHeadDecoder},
};
use tidegate::http::{BodyLength, HeadError, Method, RequestHead, head_end, parse_request};
use tidegate_fuzz::{
    MAX_INPUT_SIZE, Outcome, cuts, cutting_changes_nothing, printing_and_parsing_gives_the_same,
    sorted,
};

fuzz_target!(|input: &[u8]| {
    let input = &input[..input.len().min(MAX_INPUT_SIZE)];
    let outcome = parse_request(input);
    cutting_changes_nothing(input, &outcome, parse_request, same);
    searching_on_finds_the_same_end(input);
    if let Ok(Some((head, size))) = &outcome {
        assert!(*size <= input.len());
        let (method, target) = (head.method.as_str(), head.target.as_str());
        let first_line = format!("{method} {target} {}", head.version.as_str());
        let same = |again: &RequestHead| same(again, head);
        printing_and_parsing_gives_the_same(&first_line, &head.headers, parse_request, same);
    }
    compare(input, &outcome);
});

fn searching_on_finds_the_same_end(input: &[u8]) {
    let mut end = None;
    let mut searched = 0;
    for cut in cuts(input.len()).chain([input.len()]) {
        end = end.or_else(|| head_end(&input[..cut], searched));
        searched = cut;
    }
    assert_eq!(end, head_end(input, 0));
}

fn same(one: &RequestHead, other: &RequestHead) {
    assert_eq!(one.method, other.method);
    assert_eq!(one.target.as_str(), other.target.as_str());
    assert_eq!(one.path(), other.path());
    assert_eq!(one.query(), other.query());
    assert_eq!(one.host(), other.host());
    assert_eq!(one.version, other.version);
    assert_eq!(one.body, other.body);
    assert_eq!(one.keep_alive, other.keep_alive);
    assert_eq!(one.expects_continue, other.expects_continue);
    assert!(one.headers.iter().eq(other.headers.iter()));
}

fn compare(input: &[u8], ours: &Outcome<RequestHead>) {
    // It takes empty lines before a request for a request without end.
    let mut rest = input;
    for _ in 0..2 {
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    }
    let mut buffer = BytesMut::from(rest);
    let mut decoder = GenericHeadDecoder::<Request, _, DirectWrapper>::new(RequestHeadDecoder);
    let theirs = decoder.decode(&mut buffer);
    match (ours, theirs) {
        (Ok(Some((head, size))), Ok(Decoded::Some((parts, body)))) => {
            assert_eq!(*size, input.len() - buffer.len());
            if head.method != Method::Other {
                assert_eq!(head.method.as_str(), parts.method.as_str());
            }
            assert_eq!(head.version.as_str(), format!("{:?}", parts.version));
            // `http::Uri` reads a target that is only a host as an authority, whatever the method.
            if head.target.as_str().starts_with('/') {
                assert_eq!(head.path(), parts.uri.path());
                assert_eq!(head.query(), parts.uri.query());
            }
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
                (BodyLength::Empty, StreamHint::None) => {}
                (BodyLength::Exactly(length), StreamHint::Fixed) => {
                    let theirs = parts.headers["content-length"]
                        .to_str()
                        .expect("it read it");
                    assert_eq!(theirs.parse(), Ok(length));
                }
                (BodyLength::Chunked, StreamHint::Stream) => {}
                (ours, _) => panic!("we say {ours:?}"),
            }
        }
        (Ok(None), Ok(Decoded::Insufficient)) => {}
        (Err(_), Err(_)) => {}
        // It knows 96 fields at most.
        (Ok(Some((head, _))), Err(HttpError::H1DecodeError(DecodeError::Parse(_)))) => {
            assert!(head.headers.len() > 96);
        }
        // Its URI type refuses quotes, brackets and the like in a path, which are routed to nothing here.
        (Ok(Some(_)), Err(HttpError::H1DecodeError(DecodeError::Uri(_)))) => {}
        (Err(error), Ok(_)) => assert!(is_stricter(error), "only we refuse: {error}"),
        (ours, theirs) => panic!("we: {ours:?}, they: {}", theirs.is_ok()),
    }
}

/// What we refuse and monoio-http passes on, or waits for the rest of.
fn is_stricter(error: &HeadError) -> bool {
    match error {
        // It has no limits, and waits for more.
        HeadError::TooLarge | HeadError::TlsHello => true,
        // It leaves expectations to its caller.
        HeadError::ExpectationFailed => true,
        // It knows fewer fields and the same versions.
        HeadError::TooManyHeaders | HeadError::UnsupportedVersion => false,
        HeadError::Bad { reason } => matches!(
            *reason,
            // Some readers end lines there, so a field could hide behind it.
            "a bare line feed"
            // Where the host is ambiguous, two servers route to different places.
            | "no Host" | "repeated Host" | "malformed Host" | "malformed host in the target"
            // It takes any word, and bytes that no grammar of RFC 9112 §3.2 has.
            | "malformed target" | "a byte that no target has"
            // Request smuggling: it takes the first field that it understands.
            | "repeated Content-Length" | "Content-Length is a list"
            | "repeated Transfer-Encoding" | "both Content-Length and Transfer-Encoding"
            | "Transfer-Encoding in HTTP/1.0"
            // It treats `identity` as absent; RFC 9112 has no such coding any more.
            | "a Transfer-Encoding other than chunked"
            // It does not look at the length when there is a coding.
            | "malformed Content-Length"
            // httparse skips any number.
            | "an empty line before the first"
        ),
    }
}
