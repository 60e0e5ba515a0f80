//! Compares the types of this crate with the schemas of both OpenAPI files.
//!
//! For each type there are two samples: one with every optional member and one with none. The
//! members of the first must be the schema's `properties`, the members of the second its
//! `required`. A member that is renamed on one side only fails the test.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod samples;

use std::collections::BTreeSet;
use std::path::Path;

use basalt_api::module::CALL_NAMES;
use basalt_api::owner::ModuleStatus;
use basalt_api::{ErrorBody, ErrorCode, ErrorDetail};
use serde_json::{Value, json};

use samples::{Form, Type, module_statuses, module_types, owner_types, without};

const OWNER: &str = include_str!("../../../trustd/openapi.json");
const MODULE: &str = include_str!("../../../trustd/openapi-module.json");

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Validates a value against one schema of a document.
fn problems(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let schema = json!({ "allOf": [schema], "components": document["components"] });
    jsonschema::draft202012::new(&schema)
        .unwrap()
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// Resolves a reference to another schema of the same document.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

/// Compares one form of a type with the schema of that form.
fn compare_form(document: &Value, kind: &Type, schema: &Value, form: &Form) {
    let name = kind.name;
    for sample in [&form.full, &form.minimal] {
        let found = problems(document, schema, sample);
        assert!(found.is_empty(), "{name}: the schema rejects {sample}: {found:?}");
        assert_eq!((kind.round_trip)(sample.clone()), Ok(sample.clone()), "{name}");
    }
    let Some(properties) = schema.get("properties") else { return };
    assert_eq!(members(properties), members(&form.full), "{name}: members");
    let required: BTreeSet<&str> =
        schema["required"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(required, members(&form.minimal), "{name}: required members");
    assert_eq!(schema["additionalProperties"], false, "{name}");
    for member in &required {
        let less = without(&form.minimal, &[member]);
        // Without it the value is another variant's.
        let whole = &document["components"]["schemas"][name];
        if problems(document, whole, &less).is_empty() {
            continue;
        }
        assert_ne!((kind.round_trip)(less.clone()), Ok(less), "{name} does without {member}");
    }
    let mut more = form.full.clone();
    more["unknown_member"] = json!(1);
    assert!(!problems(document, schema, &more).is_empty(), "{name}: the schema is open");
    if kind.is_request {
        assert!((kind.round_trip)(more).is_err(), "{name} accepts an unknown member");
    }
}

fn compare(document: &Value, kind: &Type) {
    let schema = &document["components"]["schemas"][kind.name];
    assert!(schema.is_object(), "{} has no schema", kind.name);
    if let Some(words) = schema["enum"].as_array() {
        let all: Vec<&Value> = kind.forms.iter().map(|form| &form.full).collect();
        assert_eq!(words.iter().collect::<Vec<_>>(), all, "{}", kind.name);
    }
    match schema["oneOf"].as_array() {
        Some(variants) => {
            assert_eq!(variants.len(), kind.forms.len(), "{}: variants", kind.name);
            for (variant, form) in variants.iter().zip(&kind.forms) {
                compare_form(document, kind, resolved(document, variant), form);
                compare_form(document, kind, &without(schema, &["description"]), form);
            }
        }
        None => kind.forms.iter().for_each(|form| compare_form(document, kind, schema, form)),
    }
}

fn compare_all(document: &str, types: &[Type]) {
    let document: Value = serde_json::from_str(document).unwrap();
    for kind in types {
        compare(&document, kind);
    }
    let named: BTreeSet<&str> = types.iter().map(|kind| kind.name).collect();
    assert_eq!(members(&document["components"]["schemas"]), named, "schemas and types");
}

#[test]
fn the_owners_schemas_and_types_agree() {
    compare_all(OWNER, &owner_types());
}

#[test]
fn the_modules_schemas_and_types_agree() {
    compare_all(MODULE, &module_types());
}

/// Visits every schema below a value that describes an object with members.
fn inline_objects(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if map.contains_key("properties") {
                found.push(path.to_owned());
            }
            map.iter().for_each(|(key, value)| {
                inline_objects(value, &format!("{path}/{key}"), found);
            });
        }
        Value::Array(list) => list.iter().enumerate().for_each(|(n, value)| {
            inline_objects(value, &format!("{path}/{n}"), found);
        }),
        _ => {}
    }
}

#[test]
fn every_object_in_the_documents_is_a_named_schema() {
    for document in [OWNER, MODULE] {
        let document: Value = serde_json::from_str(document).unwrap();
        let mut found = Vec::new();
        inline_objects(&document["paths"], "/paths", &mut found);
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            for (member, schema) in schema["properties"].as_object().into_iter().flatten() {
                inline_objects(schema, &format!("{name}/{member}"), &mut found);
            }
        }
        assert!(found.is_empty(), "objects without a name: {found:?}");
    }
}

/// Types that are a part of another type's JSON object or a word in it, and have no schema.
const PARTS: [&str; 3] = ["ChainHead", "LedgerState", "LogSummary"];

#[test]
fn every_type_of_this_crate_is_compared() {
    fn sources(dir: &Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else if !path.ends_with("text_enum.rs") {
                *text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let mut compared: BTreeSet<&str> = PARTS.into();
    compared.extend(owner_types().iter().chain(&module_types()).map(|kind| kind.name));
    for line in text.lines().map(str::trim_start) {
        let line = line.replace("pub open enum ", "pub enum ");
        for prefix in ["pub struct ", "pub enum "] {
            let Some(rest) = line.strip_prefix(prefix) else { continue };
            let name = rest.split([' ', '<', '(', '{']).next().unwrap();
            assert!(compared.contains(name), "{name} is compared with no schema");
        }
    }
}

#[test]
fn the_names_of_the_states_are_those_on_the_wire() {
    let samples = module_statuses();
    for (sample, state) in samples.iter().zip(ModuleStatus::STATES) {
        let status: ModuleStatus = serde_json::from_value(sample.clone()).unwrap();
        assert_eq!((status.state(), &sample["state"]), (state, &json!(state)));
    }
    assert_eq!(samples.len(), ModuleStatus::STATES.len());
}

#[test]
fn the_documentation_lists_every_error_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n### Error codes\n").unwrap();
    let table = section.split("\n#").next().unwrap();
    // The second cell of each row has the code.
    let code = |row: &str| Some(row.split('|').nth(2)?.trim().strip_prefix('`')?.to_owned());
    let documented: BTreeSet<String> =
        table.lines().filter_map(code).map(|code| code.trim_end_matches('`').to_owned()).collect();
    let codes: BTreeSet<String> = ErrorCode::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(documented, codes, "the table of docs/api.md and ErrorCode");
}

#[test]
fn unknown_words_of_a_newer_node_are_kept() {
    let detail = json!({ "code": "brand-new", "message": "m" });
    let parsed: ErrorDetail = serde_json::from_value(detail.clone()).unwrap();
    assert_eq!(parsed.code, ErrorCode::Other("brand-new".into()));
    assert_eq!(serde_json::to_value(&parsed).unwrap(), detail);
    // An answer may have more members than this version knows.
    let body = json!({ "error": detail, "more": 1 });
    assert_eq!(serde_json::from_value::<ErrorBody>(body).unwrap().error, parsed);
}

#[test]
fn each_call_is_a_path_of_the_modules_document() {
    let document: Value = serde_json::from_str(MODULE).unwrap();
    let paths = members(&document["paths"]);
    let mut expected: BTreeSet<String> = CALL_NAMES.map(|name| format!("/v1/{name}")).into();
    expected.extend(["/v1/batch", "/v1/openapi.json"].map(str::to_owned));
    assert_eq!(paths, expected.iter().map(String::as_str).collect());
}
