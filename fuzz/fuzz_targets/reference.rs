#![no_main]

use std::{
    fmt::{Debug, Display},
    str::FromStr,
};

use libfuzzer_sys::fuzz_target;
use tidegate::oci::{Digest, Platform, Reference, Registry, Repository, Tag, TagOrDigest};

fuzz_target!(|text: &str| {
    round_trip::<Reference>(text);
    round_trip::<Registry>(text);
    round_trip::<Repository>(text);
    round_trip::<Tag>(text);
    round_trip::<TagOrDigest>(text);
    round_trip::<Digest>(text);
    round_trip::<Platform>(text);
});

fn round_trip<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            match printed.parse::<T>() {
                Ok(again) => assert_eq!(again, value, "{printed}"),
                Err(error) => panic!("{printed}: {error}"),
            }
        }
        // What a client gets to read is bounded.
        Err(error) => assert!(error.to_string().len() < 2_000),
    }
}
