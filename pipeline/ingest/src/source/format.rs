//! What the value of a message is, and whose samples it holds: from the config, the headers and the first bytes. Pure.

use super::config::Decoder;
use crate::decode::{self, BodyFormat};
use fletch_schemas::TenantId;

/// First bytes that are looked at to tell text from binary.
const SNIFF_BYTES: usize = 256;
/// The header with the tenant.
const TENANT_HEADER: &str = "X-Scope-OrgID";

/// A header of a message: its name and its value.
pub(super) type Header<'a> = (&'a str, Option<&'a [u8]>);

/// A message as it came. Headers in their order; a name may come twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    /// `None` when the client cannot hand them out: a name is not UTF-8.
    pub(super) headers: Option<&'a [Header<'a>]>,
}

impl<'a> Message<'a> {
    /// The last header of that name, in any case.
    fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers?.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)).and_then(|(_, value)| *value)
    }

    fn text_header(&self, name: &str) -> Option<String> {
        let value = self.header(name)?;
        Some(String::from_utf8_lossy(value).trim().to_ascii_lowercase())
    }
}

/// What decodes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    RemoteWriteSnappy,
    RemoteWriteBare,
    Json,
    PrometheusJson,
    Text,
}

impl Format {
    /// For the header of a dead letter.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::RemoteWriteSnappy | Self::RemoteWriteBare => "fletch.remote_write",
            Self::Json => "fletch.json",
            Self::PrometheusJson => "fletch.prometheus_json",
            Self::Text => "fletch.text",
        }
    }
}

/// The tenant of a message.
///
/// # Errors
/// What is wrong with the name in the header.
pub(super) fn tenant(message: &Message<'_>, otherwise: &TenantId) -> Result<TenantId, String> {
    let Some(name) = message.header(TENANT_HEADER) else { return Ok(otherwise.clone()) };
    if name == otherwise.as_str().as_bytes() {
        return Ok(otherwise.clone());
    }
    let name = std::str::from_utf8(name).map_err(|_| format!("header `{TENANT_HEADER}` is not UTF-8"))?;
    TenantId::new(name).map_err(|error| format!("header `{TENANT_HEADER}`: {error}"))
}

/// How to decode the value.
///
/// # Errors
/// Why it cannot be decoded at all.
pub(super) fn format(decoder: Decoder, message: &Message<'_>, value: &[u8]) -> Result<Format, String> {
    match decoder {
        Decoder::Json => uncompressed(message, Format::Json),
        Decoder::PrometheusJson => uncompressed(message, Format::PrometheusJson),
        Decoder::Text => uncompressed(message, Format::Text),
        Decoder::RemoteWrite => remote_write(message, value),
        Decoder::Auto => auto(message, value),
    }
}

fn uncompressed(message: &Message<'_>, format: Format) -> Result<Format, String> {
    match message.text_header("content-encoding").as_deref() {
        None | Some("" | "identity") => Ok(format),
        Some(other) => Err(format!("content-encoding `{}` is not supported for {}", clip(other), format.class())),
    }
}

fn auto(message: &Message<'_>, value: &[u8]) -> Result<Format, String> {
    let content_type = message.text_header("content-type").unwrap_or_default();
    let (kind, parameters) = content_type.split_once(';').unwrap_or((&content_type, ""));
    match kind.trim() {
        "application/json" => uncompressed(message, Format::Json),
        "text/plain" | "application/openmetrics-text" => uncompressed(message, Format::Text),
        "application/x-protobuf" if parameters.contains("proto=") && !parameters.contains("proto=prometheus.writerequest") => {
            Err(format!("content-type `{}` is not supported: only remote write 1 is", clip(&content_type)))
        }
        "application/x-protobuf" => remote_write(message, value),
        // Anything else says nothing about metrics (`application/octet-stream`, …).
        _ => sniff(message, value),
    }
}

fn sniff(message: &Message<'_>, value: &[u8]) -> Result<Format, String> {
    let encoded = message.text_header("content-encoding").is_some_and(|e| !e.is_empty() && e != "identity");
    if encoded || message.header("Version").is_some() || !is_printable(value) {
        return remote_write(message, value);
    }
    Ok(match decode::sniff(value) {
        BodyFormat::Json => Format::Json,
        BodyFormat::Text => Format::Text,
    })
}

fn remote_write(message: &Message<'_>, value: &[u8]) -> Result<Format, String> {
    if let Some(version) = mimir_version(message) {
        return if version <= 1 { Ok(Format::RemoteWriteBare) } else { Err(format!("record version {version} of Mimir is not supported")) };
    }
    match message.text_header("content-encoding").as_deref() {
        Some("snappy") => return Ok(Format::RemoteWriteSnappy),
        Some("identity") => return Ok(Format::RemoteWriteBare),
        None | Some("") => {}
        Some(other) => return Err(format!("content-encoding `{}` is not supported: remote write is snappy or bare", clip(other))),
    }
    if let [0, a, b, c, d, _, ..] = *value {
        let id = u32::from_be_bytes([a, b, c, d]);
        return Err(format!("the value begins like Confluent's wire format (schema id {id}), which is not supported"));
    }
    Ok(if is_write_request(value) { Format::RemoteWriteBare } else { Format::RemoteWriteSnappy })
}

/// Mimir's records say their version in four bytes.
fn mimir_version(message: &Message<'_>) -> Option<u32> {
    let bytes: [u8; 4] = message.header("Version")?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Whether the first bytes are text. A value that is cut within a character is still text.
fn is_printable(value: &[u8]) -> bool {
    let head = &value[..value.len().min(SNIFF_BYTES)];
    let utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    utf8 && head.iter().all(|b| *b >= b' ' && *b != 0x7f || matches!(b, b'\t' | b'\n' | b'\r'))
}

/// Whether the bytes are exactly a sequence of fields as a bare `WriteRequest` has them. A snappy block can begin with the same byte, but
/// then its first literal is longer than what is left.
fn is_write_request(mut rest: &[u8]) -> bool {
    if !matches!(rest.first(), Some(0x0A | 0x10 | 0x1A)) {
        return false;
    }
    while !rest.is_empty() {
        let Some((tag, after)) = varint(rest) else { return false };
        let Some((number, after)) = varint(after) else { return false };
        rest = match (tag >> 3, tag & 7) {
            (0, _) => return false,
            (_, 0) => after,
            (_, 2) => match usize::try_from(number).ok().and_then(|n| after.get(n..)) {
                Some(after) => after,
                None => return false,
            },
            _ => return false,
        };
    }
    true
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

/// Keeps a text of the sender short.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::testing::WriteRequest;

    fn with_headers<'a>(headers: &'a [Header<'a>]) -> Message<'a> {
        Message { topic: "t", partition: 0, offset: 0, key: None, value: None, headers: Some(headers) }
    }

    #[test]
    fn the_value_is_recognised_by_its_first_bytes() {
        let request = || WriteRequest::new().series(&[("__name__", "up")], &[(1_700_000_000_000, 1.0)]);
        let long = format!("# HELP up {}é", "x".repeat(SNIFF_BYTES - 11));
        let cases: [(&[u8], Format); 12] = [
            (br#"{"name":"a","value":1}"#, Format::Json),
            (b" [ {}]", Format::Json),
            (b"\nup 1\n", Format::Text),
            (br#"{__name__="up"} 1"#, Format::Text),
            ("größe{ort=\"Köln\"} 1".as_bytes(), Format::Text),
            (long.as_bytes(), Format::Text),
            (b"", Format::Text),
            (&request().compressed(), Format::RemoteWriteSnappy),
            (&request().encoded(), Format::RemoteWriteBare),
            (b"\x01\x00x", Format::RemoteWriteSnappy),
            (b"\xff\xfe", Format::RemoteWriteSnappy),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Format::RemoteWriteSnappy),
        ];
        for (value, expected) in cases {
            assert_eq!(format(Decoder::Auto, &with_headers(&[]), value), Ok(expected), "{value:?}");
        }
        // Every short request, also those whose length as the first byte of the snappy block is a protobuf tag.
        for n in 0..40 {
            let name = "n".repeat(n);
            for value in [0.0, 1.0] {
                let request = || WriteRequest::new().series(&[("__name__", &name)], &[(1_700_000_000_000, value)]);
                let (bare, packed) = (request().encoded(), request().compressed());
                assert_eq!(format(Decoder::RemoteWrite, &with_headers(&[]), &bare), Ok(Format::RemoteWriteBare), "{n}");
                assert_eq!(format(Decoder::RemoteWrite, &with_headers(&[]), &packed), Ok(Format::RemoteWriteSnappy), "{n}");
            }
        }
    }

    #[test]
    fn headers_come_before_the_first_bytes_and_the_config_before_headers() {
        let auto = |headers: &[Header<'_>]| format(Decoder::Auto, &with_headers(headers), b"up 1");
        assert_eq!(auto(&[("Content-Type", Some(b"application/json; charset=utf-8"))]), Ok(Format::Json));
        assert_eq!(auto(&[("content-type", Some(b"text/plain; version=0.0.4"))]), Ok(Format::Text));
        assert_eq!(
            auto(&[("content-type", Some(b"application/x-protobuf")), ("content-encoding", Some(b"snappy"))]),
            Ok(Format::RemoteWriteSnappy)
        );
        assert_eq!(auto(&[("content-encoding", Some(b"snappy"))]), Ok(Format::RemoteWriteSnappy));
        assert_eq!(
            auto(&[("content-encoding", Some(b"identity")), ("content-type", Some(b"application/x-protobuf"))]),
            Ok(Format::RemoteWriteBare)
        );
        assert_eq!(auto(&[("content-type", Some(b"application/octet-stream"))]), Ok(Format::Text));
        assert_eq!(auto(&[("Version", Some(&[0, 0, 0, 1]))]), Ok(Format::RemoteWriteBare));
        assert_eq!(auto(&[("content-type", None)]), Ok(Format::Text));
        assert_eq!(
            format(Decoder::PrometheusJson, &with_headers(&[("content-type", Some(b"text/plain"))]), b"{}"),
            Ok(Format::PrometheusJson)
        );
        let refused = [
            (auto(&[("Version", Some(&[0, 0, 0, 2]))]), "record version 2 of Mimir"),
            (auto(&[("content-encoding", Some(b"zstd"))]), "content-encoding `zstd`"),
            (auto(&[("content-type", Some(b"application/json")), ("content-encoding", Some(b"gzip"))]), "content-encoding `gzip`"),
            (auto(&[("content-type", Some(b"application/x-protobuf;proto=io.prometheus.write.v2.Request"))]), "only remote write 1"),
            (format(Decoder::Auto, &with_headers(&[]), &[0, 0, 0, 1, 2, 9]), "schema id 258"),
        ];
        for (found, part) in refused {
            assert!(found.as_ref().is_err_and(|e| e.contains(part)), "{found:?} lacks {part}");
        }
    }

    #[test]
    fn the_tenant_comes_from_the_header_or_the_config() {
        let configured = TenantId::new("team").expect("valid");
        let of = |headers: &[Header<'_>]| tenant(&with_headers(headers), &configured);
        assert_eq!(of(&[]).as_ref(), Ok(&configured));
        assert_eq!(of(&[("x-scope-orgid", Some(b"other"))]), Ok(TenantId::new("other").expect("valid")));
        assert_eq!(of(&[("X-Scope-OrgID", Some(b"a")), ("X-Scope-OrgID", Some(b"b"))]), Ok(TenantId::new("b").expect("valid")));
        assert_eq!(of(&[("X-Scope-OrgID", None)]).as_ref(), Ok(&configured));
        assert!(of(&[("X-Scope-OrgID", Some(b"a/b"))]).is_err_and(|e| e.contains("X-Scope-OrgID")));
        assert!(of(&[("X-Scope-OrgID", Some(b"\xff"))]).is_err_and(|e| e.contains("not UTF-8")));
    }
}
