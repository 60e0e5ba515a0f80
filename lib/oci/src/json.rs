//! Strict JSON: Go's decoder, which the engine uses, reads the same document.
//!
//! Go matches the keys of structures without regard to case and uses the last value of a repeated
//! key; the keys of maps are the user's and are kept as they are. Both are described by a
//! [`Shape`].
//!
//! Invariants:
//! - No structure has two keys that Go takes for the same. The keys of known structures get their
//!   canonical spelling, so `Config` is read as `config`, as in Go.
//! - No map has a key twice.
//! - Known members have the type that Go expects, or are null, which Go ignores. Integers are
//!   written without fraction and exponent, and fit into 64 bits.
//! - Text is valid UTF-8 without lone surrogates. Go would replace such characters.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

const MAX_DEPTH: usize = 32;

/// Type of a value in Go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Anything. Objects are taken for structures.
    Any,
    /// Text.
    Text,
    /// Integer of 64 bits.
    Integer,
    /// Truth value.
    Boolean,
    /// List with elements of one shape.
    List(&'static Shape),
    /// Map from the user's keys to values of one shape.
    Map(&'static Shape),
    /// Structure with these known members, and others.
    Struct(&'static [(&'static str, Shape)]),
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Any => "JSON",
            Self::Text => "a text",
            Self::Integer => "an integer of 64 bits",
            Self::Boolean => "true or false",
            Self::List(_) => "a list",
            Self::Map(_) | Self::Struct(_) => "an object",
        }
    }

    /// Returns the canonical spelling of a key, and the shape of its value.
    fn member(self, key: &str) -> (Option<&'static str>, Self) {
        match self {
            Self::Struct(members) => members
                .iter()
                .find(|(name, _)| fold(name) == fold(key))
                .map_or((None, Self::Any), |(name, shape)| (Some(name), *shape)),
            Self::Map(inner) => (None, *inner),
            _ => (None, Self::Any),
        }
    }
}

/// Folds the case of a key like Go's `encoding/json` (`foldName`). All names of members are ASCII,
/// and two other characters fold to ASCII.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{212a}' => 'k',
            '\u{17f}' => 's',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// Parses a document of this shape.
///
/// # Errors
///
/// Returns an error for text that is not JSON and for a document that breaks an invariant of this
/// module.
pub(crate) fn parse(bytes: &[u8], shape: Shape) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, shape }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
    shape: Shape,
}

impl Strict {
    fn deeper<E: Error>(self, shape: Shape) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            Err(E::custom(format_args!("expected at most {MAX_DEPTH} levels of nesting")))
        } else {
            Ok(Self { depth: self.depth + 1, shape })
        }
    }

    fn accept<E: Error>(self, allowed: bool, value: Value) -> Result<Value, E> {
        if allowed || matches!(self.shape, Shape::Any) {
            Ok(value)
        } else {
            Err(E::custom(format_args!("expected {}", self.shape.name())))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shape.name())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        self.accept(matches!(self.shape, Shape::Boolean), v.into())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        let fits = matches!(self.shape, Shape::Integer) && i64::try_from(v).is_ok();
        self.accept(fits, v.into())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        self.accept(matches!(self.shape, Shape::Integer), v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        self.accept(false, v.into())
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        self.accept(matches!(self.shape, Shape::Text), v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let element = if let Shape::List(element) = self.shape { *element } else { Shape::Any };
        self.accept(matches!(self.shape, Shape::List(_)), Value::Null)?;
        let inner = self.deeper(element)?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(inner)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let object = matches!(self.shape, Shape::Map(_) | Shape::Struct(_));
        self.accept(object, Value::Null)?;
        let is_map = matches!(self.shape, Shape::Map(_));
        let (mut object, mut keys) = (Map::new(), BTreeSet::new());
        while let Some(key) = map.next_key::<String>()? {
            let (name, shape) = self.shape.member(&key);
            if !keys.insert(if is_map { key.clone() } else { fold(&key) }) {
                let reason = if is_map { "" } else { " (the engine ignores the case of keys)" };
                return Err(A::Error::custom(format!("the key {key:?} occurs twice{reason}")));
            }
            let value = map.next_value_seed(self.deeper(shape)?)?;
            object.insert(name.map_or(key, str::to_owned), value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::{Shape, parse};

    const STRUCTURE: Shape = Shape::Struct(&[
        ("size", Shape::Integer),
        ("labels", Shape::Map(&Shape::Text)),
        ("list", Shape::List(&Shape::Text)),
        ("config", Shape::Struct(&[("Volumes", Shape::Map(&Shape::Any))])),
    ]);

    #[test]
    fn keys_of_structures_that_differ_only_in_case_are_rejected() {
        assert!(parse(br#"{"a":[1,{"b":null}],"c":-1.5}"#, Shape::Any).is_ok());
        for bad in [
            &br#"{"a":1,"a":2}"#[..],
            br#"{"Config":{},"config":{}}"#,
            br#"{"x":{"a":1,"A":1}}"#,
            "{\"layers\":1,\"layer\u{17f}\":2}".as_bytes(),
            "{\"\u{212a}ey\":1,\"key\":2}".as_bytes(),
            br#"{"\u0061":1,"a":2}"#,
            b"{} {}",
            b"{",
            b"",
        ] {
            let text = String::from_utf8_lossy(bad);
            assert!(parse(bad, Shape::Any).is_err(), "{text}");
            assert!(parse(bad, STRUCTURE).is_err(), "{text}");
        }
        assert!(parse("[".repeat(100).as_bytes(), Shape::Any).is_err());
    }

    #[test]
    fn keys_of_maps_are_the_users() {
        let value = parse(br#"{"labels":{"Release":"1","release":"2"}}"#, STRUCTURE).unwrap();
        assert_eq!(value["labels"]["Release"], "1");
        assert_eq!(value["labels"]["release"], "2");
        assert!(parse(br#"{"labels":{"a":"1","a":"2"}}"#, STRUCTURE).is_err());
        assert!(parse(br#"{"labels":{"a":"1","\u0061":"1"}}"#, STRUCTURE).is_err());
        assert!(parse(br#"{"labels":{"a":1}}"#, STRUCTURE).is_err());
    }

    #[test]
    fn known_keys_get_their_canonical_spelling() {
        let text = "{\"CONFIG\":{\"volume\u{17f}\":{\"/a\":{}}}}";
        let value = parse(text.as_bytes(), STRUCTURE).unwrap();
        assert!(value["config"]["Volumes"]["/a"].is_object());
    }

    #[test]
    fn values_of_another_type_are_rejected_and_null_is_absent() {
        for good in [
            r#"{"size":7,"list":["a",null],"labels":null}"#,
            r#"{"size":null,"list":null,"config":null}"#,
            r#"{"size":9223372036854775807}"#,
            r#"{"other":1.5}"#,
        ] {
            assert!(parse(good.as_bytes(), STRUCTURE).is_ok(), "{good}");
        }
        for bad in [
            r#"{"size":1.0}"#,
            r#"{"size":1e3}"#,
            r#"{"size":"1"}"#,
            r#"{"size":9223372036854775808}"#,
            r#"{"list":{}}"#,
            r#"{"list":[1]}"#,
            r#"{"list":"a"}"#,
            r#"{"labels":[]}"#,
            r#"{"config":[]}"#,
            r#"{"a":"\ud800"}"#,
            "\u{feff}{}",
        ] {
            assert!(parse(bad.as_bytes(), STRUCTURE).is_err(), "{bad}");
        }
        assert!(parse(b"{\"a\":\"\xff\"}", STRUCTURE).is_err());
        assert!(parse(b"{\"\xff\":1}", STRUCTURE).is_err());
    }
}
