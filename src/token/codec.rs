//! A token's text: a version, then 20 bytes and their checksum in URL-safe base64. One token has one text.

use super::{CausalToken, TokenError};
use crate::patroni::{Lsn, SystemId, Timeline};

const PREFIX: &str = "lp1_";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const PAYLOAD: usize = 20;
const BYTES: usize = PAYLOAD + 4;
/// No padding, as 24 bytes fill their characters.
const CHARS: usize = BYTES / 3 * 4;

pub(super) fn encode(token: &CausalToken) -> String {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&token.system_id.0.to_be_bytes());
    bytes[8..12].copy_from_slice(&token.timeline.0.to_be_bytes());
    bytes[12..PAYLOAD].copy_from_slice(&token.lsn.0.to_be_bytes());
    let sum = checksum(&bytes[..PAYLOAD]);
    bytes[PAYLOAD..].copy_from_slice(&sum.to_be_bytes());
    let mut text = String::with_capacity(PREFIX.len() + CHARS);
    text.push_str(PREFIX);
    for three in bytes.chunks_exact(3) {
        let group = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(ALPHABET[(group >> shift & 63) as usize]));
        }
    }
    text
}

pub(super) fn decode(text: &str) -> Result<CausalToken, TokenError> {
    let Some(chars) = text.strip_prefix(PREFIX) else {
        return Err(TokenError::Malformed("it does not start with lp1_"));
    };
    if chars.len() != CHARS {
        return Err(TokenError::Malformed("it has the wrong length"));
    }
    let mut bytes = [0; BYTES];
    for (four, three) in chars.as_bytes().chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
        let mut group = 0_u32;
        for char in four {
            group = group << 6 | digit(*char)?;
        }
        three.copy_from_slice(&group.to_be_bytes()[1..]);
    }
    let sum = checksum(&bytes[..PAYLOAD]);
    if sum.to_be_bytes() != bytes[PAYLOAD..] {
        return Err(TokenError::Malformed("its checksum is wrong"));
    }
    let (mut system_id, mut timeline, mut lsn) = ([0; 8], [0; 4], [0; 8]);
    system_id.copy_from_slice(&bytes[..8]);
    timeline.copy_from_slice(&bytes[8..12]);
    lsn.copy_from_slice(&bytes[12..PAYLOAD]);
    Ok(CausalToken {
        system_id: SystemId(u64::from_be_bytes(system_id)),
        timeline: Timeline(u32::from_be_bytes(timeline)),
        lsn: Lsn(u64::from_be_bytes(lsn)),
    })
}

fn digit(char: u8) -> Result<u32, TokenError> {
    let value = match char {
        b'A'..=b'Z' => char - b'A',
        b'a'..=b'z' => char - b'a' + 26,
        b'0'..=b'9' => char - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return Err(TokenError::Malformed("it holds a character that no token has")),
    };
    Ok(u32::from(value))
}

/// CRC-32 as in Ethernet and zip.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut sum, byte| {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ (0xEDB8_8320 & (sum & 1).wrapping_neg());
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32() {
        assert_eq!(checksum(b"123456789"), 0xCBF4_3926);
    }
}
