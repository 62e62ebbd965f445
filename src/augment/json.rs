//! JSON objects of which a few members are replaced and all others stay as they were written.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::value::{RawValue, to_raw_value};

use super::AugmentError;

/// In the order in which they were written.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, Member<'a>)>);

pub(super) type Member<'a> = Cow<'a, RawValue>;

impl<'a> Object<'a> {
    pub(super) fn parse(part: &'static str, bytes: &'a [u8]) -> Result<Self, AugmentError> {
        serde_json::from_slice(bytes).map_err(|cause| malformed(part, &cause))
    }

    pub(super) fn empty() -> Self {
        Self(Vec::new())
    }

    pub(super) fn with(name: &'static str, value: &impl Serialize) -> Self {
        Self(vec![(Cow::Borrowed(name), raw(value))])
    }

    /// `None` for a member that is not there, or `null`.
    pub(super) fn get<'s, T: Deserialize<'s>>(
        &'s self,
        part: &'static str,
        name: &str,
    ) -> Result<Option<T>, AugmentError> {
        let Some((_, member)) = self.0.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        serde_json::from_str(member.get()).map_err(|cause| malformed(part, &cause))
    }

    /// In place, or at the end.
    pub(super) fn set(&mut self, name: &'static str, value: &impl Serialize) {
        let value = raw(value);
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, member)) => *member = value,
            None => self.0.push((Cow::Borrowed(name), value)),
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    /// For an object that holds this one.
    pub(super) fn to_member(&self) -> Member<'static> {
        raw(self)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("members are JSON already")
    }
}

pub(super) fn raw(value: &impl Serialize) -> Member<'static> {
    Cow::Owned(to_raw_value(value).expect("texts, numbers and lists are always JSON"))
}

fn malformed(part: &'static str, cause: &serde_json::Error) -> AugmentError {
    AugmentError::Malformed {
        part,
        cause: cause.to_string(),
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, member) in &self.0 {
            map.serialize_entry(name, member)?;
        }
        map.end()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object<'de>, M::Error> {
                let mut names = HashSet::new();
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    // Readers do not agree on which one counts.
                    if !names.insert(name.clone()) {
                        return Err(M::Error::custom("it names a member twice"));
                    }
                    let member: &'de RawValue = map.next_value()?;
                    members.push((Cow::Owned(name), Cow::Borrowed(member)));
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_not_replaced_stay_as_they_were_written() {
        let text = r#"{ "a" : 1.50e+2, "b":"\u00e9\/<", "c":{"x" :  [ ]}, "d":null}"#;
        let mut object = Object::parse("it", text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        object.set("d", &7);
        object.set("e", &["new"]);
        object.remove("missing");
        let bytes = object.to_bytes();
        assert_eq!(
            str::from_utf8(&bytes),
            Ok(r#"{"a":1.50e+2,"b":"\u00e9\/<","c":{"x" :  [ ]},"d":7,"e":["new"]}"#)
        );
    }

    #[test]
    fn what_readers_would_not_agree_on_is_refused() {
        for text in ["", "[]", "1", r#"{"a":1,"a":2}"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(Object::parse("it", text.as_bytes()).is_err(), "{text}");
        }
    }
}
