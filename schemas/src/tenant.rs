//! The tenant: whose data it is. One type, so that no raw string ever reaches a path or a query.

use std::fmt;
use std::sync::Arc;

/// Longest tenant name in bytes (Mimir's limit).
pub const TENANT_BYTES_MAX: usize = 150;

/// Why a text is not a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// Empty, `.`, `..` or `__mimir_cluster`-like reserved names.
    #[error("tenant `{0}` is reserved or empty")]
    Reserved(String),
    /// A character outside `a-z A-Z 0-9 ! - _ . * ' ( )`.
    #[error("tenant contains `{0}`; allowed are letters, digits and ! - _ . * ' ( )")]
    Character(char),
    /// Longer than [`TENANT_BYTES_MAX`].
    #[error("tenant is {0} bytes long, at most {TENANT_BYTES_MAX} are allowed")]
    TooLong(usize),
}

/// A checked tenant name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// Checks Mimir's rules.
    ///
    /// # Errors
    /// [`TenantError`], naming the culprit.
    pub fn new(name: &str) -> Result<Self, TenantError> {
        if name.len() > TENANT_BYTES_MAX {
            return Err(TenantError::TooLong(name.len()));
        }
        if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "!-_.*'()".contains(*c))) {
            return Err(TenantError::Character(bad));
        }
        if name.is_empty() || name == "." || name == ".." || name.starts_with("__") {
            return Err(TenantError::Reserved(name.to_owned()));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a Hive partition value in a path: everything but letters, digits, `-` and `_` percent-encoded.
    pub fn path_segment(&self) -> String {
        let mut out = String::with_capacity(self.0.len());
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    }
}

impl Default for TenantId {
    fn default() -> Self {
        Self(Arc::from("default"))
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_encoded() {
        assert_eq!(TenantId::new("a.b(c)").map(|t| t.path_segment()), Ok("a%2Eb%28c%29".into()));
        assert_eq!(TenantId::new("a/b"), Err(TenantError::Character('/')));
        assert_eq!(TenantId::new(".."), Err(TenantError::Reserved("..".into())));
        assert_eq!(TenantId::new(&"x".repeat(151)), Err(TenantError::TooLong(151)));
        assert!(TenantId::new(&"x".repeat(150)).is_ok());
    }
}
