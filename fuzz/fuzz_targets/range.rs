#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::http::{RangeWish, parse_content_range, parse_range};

fuzz_target!(|input: &str| {
    // A size, and the field to be read against it.
    let (size, text) = input.split_once('\n').unwrap_or(("", input));
    let size = size.parse().unwrap_or(u64::MAX);
    match parse_range(text, size) {
        RangeWish::Part(part) => {
            assert!(part.start < part.end && part.end <= size);
            let printed = format!("bytes={}-{}", part.start, part.end - 1);
            assert_eq!(parse_range(&printed, size), RangeWish::Part(part));
        }
        RangeWish::Parts(parts) => {
            let mut sorted = parts.clone();
            sorted.sort_by_key(|part| part.start);
            assert!(sorted.iter().all(|part| part.start < part.end && part.end <= size));
            assert!(sorted.windows(2).all(|pair| pair[0].end <= pair[1].start));
            let printed: Vec<String> = parts
                .iter()
                .map(|part| format!("{}-{}", part.start, part.end - 1))
                .collect();
            if parts.len() > 1 {
                let printed = format!("bytes={}", printed.join(","));
                assert_eq!(parse_range(&printed, size), RangeWish::Parts(parts));
            }
        }
        RangeWish::Whole | RangeWish::Unsatisfiable => {}
    }
    if let Some(range) = parse_content_range(text) {
        assert!(range.start < range.end);
        assert!(range.size.is_none_or(|size| range.end <= size));
        let size = range.size.map_or("*".to_owned(), |size| size.to_string());
        let printed = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        assert_eq!(parse_content_range(&printed), Some(range));
    }
});
