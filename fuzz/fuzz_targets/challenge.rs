#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::http::{Challenge, parse_challenges};

fuzz_target!(|text: &str| {
    let challenges = parse_challenges(text.split('\n'));
    let printed: Vec<String> = challenges.iter().map(print).collect();
    let size: usize = printed.iter().map(|challenge| challenge.len() + 2).sum();
    if size > 8 * 1024 {
        return; // Beyond the bound, by its escapes.
    }
    let lines = parse_challenges(printed.iter().map(String::as_str));
    assert_eq!(lines, challenges);
    let one_line = printed.join(", ");
    assert_eq!(
        parse_challenges([one_line.as_str()].into_iter()),
        challenges
    );
});

fn print(challenge: &Challenge) -> String {
    let (scheme, parameters) = match challenge {
        Challenge::Bearer {
            realm,
            service,
            scope,
            error,
        } => (
            "Bearer",
            vec![
                ("realm", Some(realm)),
                ("service", service.as_ref()),
                ("scope", scope.as_ref()),
                ("error", error.as_ref()),
            ],
        ),
        Challenge::Basic { realm } => ("Basic", vec![("realm", realm.as_ref())]),
    };
    let parameters: Vec<String> = parameters
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value?.replace('\\', "\\\\").replace('"', "\\\"");
            Some(format!("{name}=\"{value}\""))
        })
        .collect();
    format!("{scheme} {}", parameters.join(","))
}
