//! Who may ask for what changes something. Pure.

use std::net::IpAddr;

use leaderpool::config::Secret;

/// What one request shows of its sender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    /// Where it comes from.
    pub(super) peer: IpAddr,
    /// Whether it showed a certificate that was good.
    pub(super) has_certificate: bool,
    /// The header `Authorization`.
    pub(super) authorization: Option<&'a [u8]>,
}

/// The rules.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    /// User and password, as the header has them; `None`: none are asked for.
    pub(super) credentials: Option<Credentials>,
    /// Whence; `None`: from anywhere.
    pub(super) networks: Option<Vec<Network>>,
    /// Whether a certificate is asked for.
    pub(super) certificate: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// 401: log in, or log in rightly.
    Unauthorized(&'static str),
    /// 403: not from there, or not without a certificate.
    Forbidden(&'static str),
}

impl Access {
    /// Whether the caller may.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, caller: &Caller<'_>) -> Result<(), Denied> {
        if let Some(networks) = &self.networks
            && !networks.iter().any(|network| network.contains(caller.peer))
        {
            return Err(Denied::Forbidden("access is denied from this address"));
        }
        if self.certificate && !caller.has_certificate {
            return Err(Denied::Forbidden("a client certificate is required"));
        }
        match (&self.credentials, caller.authorization) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Denied::Unauthorized("no auth header received")),
            (Some(wanted), Some(shown)) if wanted.are(shown) => Ok(()),
            (Some(_), Some(_)) => Err(Denied::Unauthorized("not authenticated")),
        }
    }
}

/// User and password as the header has them.
#[derive(Clone)]
pub(super) struct Credentials(Secret);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Credentials {
    /// The header that shows these.
    #[must_use]
    pub(super) fn new(user: &str, password: &str) -> Self {
        Self(base64(format!("{user}:{password}").as_bytes()).into())
    }

    fn are(&self, header: &[u8]) -> bool {
        let Some((scheme, shown)) = header.split_at_checked(6) else { return false };
        let (wanted, shown) = (self.0.expose().as_bytes(), shown.trim_ascii());
        // All of it is compared, whatever differs first: the time tells nothing.
        let differs = wanted.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b));
        scheme.eq_ignore_ascii_case(b"basic ") && wanted.len() == shown.len() && differs == 0
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            text.push(match place <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

/// An address, or all with the same beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `::1` and the like; `None` for anything else, a name for example.
    #[must_use]
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(Self { address, bits })
    }

    /// Whether `address` lies in it. One that is IPv4 in the clothes of IPv6 counts as IPv4.
    #[must_use]
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 4),
            IpAddr::V6(address) => (address.to_bits(), 6),
        };
        let ((ours, our_kind), (theirs, their_kind)) =
            (number(self.address), number(address.to_canonical()));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        our_kind == their_kind && ours & mask == theirs & mask
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn base64_of_each_length() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("user:pass", "dXNlcjpwYXNz"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn networks() {
        let table = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "::1", false),
            ("fe80::/10", "fe80::1", true),
            ("::1", "::2", false),
        ];
        for (network, address, lies) in table {
            let network = Network::parse(network).expect("a network");
            assert_eq!(network.contains(ip(address)), lies, "{network:?} {address}");
        }
        for bad in ["", "host", "1.2.3.4/33", "1.2.3.4/x", "::1/129"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn rules_apply_in_order() {
        let access = Access {
            credentials: Some(Credentials::new("user", "pass")),
            networks: Some(vec![Network::from(ip("127.0.0.1"))]),
            certificate: true,
        };
        let good = Caller {
            peer: ip("127.0.0.1"),
            has_certificate: true,
            authorization: Some(b"Basic dXNlcjpwYXNz"),
        };
        assert_eq!(access.check(&good), Ok(()));
        let lower = Caller { authorization: Some(b"basic dXNlcjpwYXNz "), ..good };
        assert_eq!(access.check(&lower), Ok(()));
        let elsewhere = Caller { peer: ip("127.0.0.2"), ..good };
        assert!(matches!(access.check(&elsewhere), Err(Denied::Forbidden(_))));
        let bare = Caller { has_certificate: false, ..good };
        assert!(matches!(access.check(&bare), Err(Denied::Forbidden(_))));
        for header in [
            None,
            Some(&b"Basic dXNlcjpwYXNx"[..]),
            Some(b"Basic"),
            Some(b"Basic "),
            Some(b"Bearer dXNlcjpwYXNz"),
        ] {
            let caller = Caller { authorization: header, ..good };
            assert!(matches!(access.check(&caller), Err(Denied::Unauthorized(_))), "{header:?}");
        }
        assert_eq!(Access::default().check(&Caller { authorization: None, ..elsewhere }), Ok(()));
        assert!(!format!("{access:?}").contains("dXNl"));
    }
}
