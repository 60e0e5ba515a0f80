//! Writes software bills of materials in two formats: CycloneDX 1.6 and SPDX 2.3.

use serde_json::{Value, json};

use crate::engine::hash;

/// A third-party component of the image: a crate or a Debian package.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// Name of the crate or package.
    pub name: String,
    /// Version, in the format of the crate or package.
    pub version: String,
    /// Package URL.
    pub purl: String,
    /// SHA-256 of the fetched archive (`.crate` or `.deb`), in hex.
    pub sha256: String,
    /// Licence as an SPDX expression, if the author declares one.
    pub licence: Option<String>,
}

/// The image that a document describes.
pub struct Subject<'a> {
    /// Name of the image.
    pub name: &'a str,
    /// Version of the release.
    pub version: &'a str,
    /// Time of the release, in seconds since 1970.
    pub time: u64,
}

/// Returns the bill of materials as CycloneDX.
pub fn cyclone_dx(subject: &Subject<'_>, components: &[Component]) -> Value {
    let Subject { name, version, time } = subject;
    let components: Vec<Value> = components
        .iter()
        .map(|c| {
            let mut component = json!({
                "type": "library",
                "bom-ref": c.purl,
                "name": c.name,
                "version": c.version,
                "purl": c.purl,
                "hashes": [{ "alg": "SHA-256", "content": c.sha256 }],
            });
            if let Some(licence) = &c.licence {
                component["licenses"] = json!([{ "expression": licence }]);
            }
            component
        })
        .collect();
    let system =
        json!({ "type": "operating-system", "bom-ref": name, "name": name, "version": version });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "timestamp": timestamp(*time), "component": system },
        "components": components,
    })
}

/// Returns the bill of materials as SPDX.
pub fn spdx(subject: &Subject<'_>, components: &[Component]) -> Value {
    let Subject { name, version, time } = subject;
    let mut packages = vec![spdx_package("SPDXRef-image", name, version, None)];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")];
    for c in components {
        let id = format!("SPDXRef-{}", &hash::bytes(c.purl.as_bytes())[..16]);
        let mut package = spdx_package(&id, &c.name, &c.version, c.licence.as_deref());
        package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": c.sha256 }]);
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": c.purl,
        }]);
        packages.push(package);
        relationships.push(relationship("SPDXRef-image", "CONTAINS", &id));
    }
    // The namespace must be unique for each document (SPDX 2.3, section 6.5).
    let list: String = components.iter().map(|c| format!("{} {}\n", c.purl, c.sha256)).collect();
    let content = hash::bytes(list.as_bytes());
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("urn:basalt:{name}:{version}:{content}"),
        "creationInfo": {
            "created": timestamp(*time),
            "creators": [format!("Tool: basalt-xtask-{version}")],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

/// Returns a package of an SPDX document.
fn spdx_package(id: &str, name: &str, version: &str, licence: Option<&str>) -> Value {
    const NO_ASSERTION: &str = "NOASSERTION";
    json!({
        "SPDXID": id,
        "name": name,
        "versionInfo": version,
        "downloadLocation": NO_ASSERTION,
        "filesAnalyzed": false,
        "licenseConcluded": NO_ASSERTION,
        "licenseDeclared": licence.unwrap_or(NO_ASSERTION),
        "copyrightText": NO_ASSERTION,
    })
}

/// Returns a relationship of an SPDX document.
fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// Returns a time, given in seconds since 1970, in the format of RFC 3339 in UTC.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    format!(
        "{year:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        month + 1,
        left + 1,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn timestamps_match_the_calendar() {
        // The expected values are the output of `date -u -d @SECONDS +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_219_200, "2026-11-21T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn every_component_is_in_both_documents() {
        let component = |name: &str| Component {
            name: name.into(),
            version: "1".into(),
            purl: format!("pkg:cargo/{name}@1"),
            sha256: "00".into(),
            licence: Some("MIT OR Apache-2.0".into()),
        };
        let components = [component("a"), component("b")];
        let subject = Subject { name: "x", version: "0", time: 0 };
        let cdx = cyclone_dx(&subject, &components);
        assert_eq!(cdx["components"].as_array().unwrap().len(), 2);
        assert_eq!(cdx["components"][1]["purl"], "pkg:cargo/b@1");
        let spdx = spdx(&subject, &components);
        let ids: BTreeSet<&str> = spdx["packages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["SPDXID"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), 3);
        for relation in spdx["relationships"].as_array().unwrap() {
            assert!(ids.contains(relation["relatedSpdxElement"].as_str().unwrap()));
        }
    }
}
