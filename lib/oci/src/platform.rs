//! Platforms of images, compared as the engine compares them (containerd/platforms).

use serde::{Deserialize, Serialize};

/// Platform of an image, by its Go names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, such as `linux`.
    pub os: String,
    /// Architecture, such as `arm64`.
    pub architecture: String,
}

impl Platform {
    /// Returns the platform of Linux on this architecture.
    pub fn linux(architecture: &str) -> Self {
        Self { os: "linux".into(), architecture: architecture.into() }
    }

    /// Reports whether an image for the described platform runs on this one. Both accept aliases,
    /// and an absent operating system is Linux.
    pub(crate) fn runs(&self, found: &serde_json::Value) -> bool {
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_ascii_lowercase();
        let (os, architecture, variant) = (text("os"), text("architecture"), text("variant"));
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        // A variant other than the first one needs a processor with more instructions.
        let baseline: &[&str] = match architecture {
            "amd64" => &["", "v1"],
            "arm64" => &["", "8", "v8", "v8.0"],
            _ => &[""],
        };
        (self.os == os || os.is_empty() && self.os == "linux")
            && self.architecture == architecture
            && baseline.contains(&variant.as_str())
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Returns the text of a described platform, for errors.
pub(crate) fn describe(found: &serde_json::Value) -> String {
    let text = |key: &str| found[key].as_str().filter(|t| !t.is_empty()).unwrap_or("?");
    let mut described = format!("{}/{}", text("os"), text("architecture"));
    if let Some(variant) = found["variant"].as_str().filter(|v| !v.is_empty()) {
        described = format!("{described}/{variant}");
    }
    described.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_for_the_baseline_of_a_processor_run() {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let (arm, intel) = (Platform::linux("arm64"), Platform::linux("amd64"));
        for (platform, text, runs) in [
            (&arm, r#"{"os":"linux","architecture":"arm64"}"#, true),
            (&arm, r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#, true),
            (&arm, r#"{"os":"Linux","architecture":"aarch64","variant":""}"#, true),
            (&arm, r#"{"architecture":"arm64","variant":null}"#, true),
            (&arm, r#"{"os":"linux","architecture":"arm64","variant":"v9"}"#, false),
            (&arm, r#"{"os":"linux","architecture":"arm64","variant":"v8.2"}"#, false),
            (&arm, r#"{"os":"linux","architecture":"arm","variant":"v7"}"#, false),
            (&arm, r#"{"os":"unknown","architecture":"unknown"}"#, false),
            (&arm, r#"{"os":"windows","architecture":"arm64"}"#, false),
            (&arm, r#"{"os":"linux"}"#, false),
            (&intel, r#"{"os":"linux","architecture":"x86_64"}"#, true),
            (&intel, r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#, false),
        ] {
            assert_eq!(platform.runs(&json(text)), runs, "{text}");
        }
    }
}
