//! Envoy's response flags.

use std::fmt;
use std::ops::BitOr;

/// A set of flags. Shown as Envoy shows `%RESPONSE_FLAGS%`: short names by commas, `-` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

macro_rules! flags {
    ($($name:ident $bit:literal $short:literal $long:literal;)*) => {
        impl Flags {
            pub const NONE: Self = Self(0);
            $(#[doc = $long] pub const $name: Self = Self(1 << $bit);)*
            /// In Envoy's order: flag, short name, long name.
            pub const ALL: &'static [(Self, &'static str, &'static str)] = &[$((Self::$name, $short, $long)),*];
        }
    };
}

flags! {
    LH 0 "LH" "FailedLocalHealthCheck";
    UH 1 "UH" "NoHealthyUpstream";
    UT 2 "UT" "UpstreamRequestTimeout";
    LR 3 "LR" "LocalReset";
    UR 4 "UR" "UpstreamRemoteReset";
    UF 5 "UF" "UpstreamConnectionFailure";
    UC 6 "UC" "UpstreamConnectionTermination";
    UO 7 "UO" "UpstreamOverflow";
    NR 8 "NR" "NoRouteFound";
    DI 9 "DI" "DelayInjected";
    FI 10 "FI" "FaultInjected";
    RL 11 "RL" "RateLimited";
    UAEX 12 "UAEX" "UnauthorizedExternalService";
    RLSE 13 "RLSE" "RateLimitServiceError";
    DC 14 "DC" "DownstreamConnectionTermination";
    URX 15 "URX" "UpstreamRetryLimitExceeded";
    SI 16 "SI" "StreamIdleTimeout";
    IH 17 "IH" "InvalidEnvoyRequestHeaders";
    DPE 18 "DPE" "DownstreamProtocolError";
    UMSDR 19 "UMSDR" "UpstreamMaxStreamDurationReached";
    RFCF 20 "RFCF" "ResponseFromCacheFilter";
    NFCF 21 "NFCF" "NoFilterConfigFound";
    DT 22 "DT" "DurationTimeout";
    UPE 23 "UPE" "UpstreamProtocolError";
    NC 24 "NC" "NoClusterFound";
    OM 25 "OM" "OverloadManagerTerminated";
    DF 26 "DF" "DnsResolutionFailed";
    DO 27 "DO" "DropOverload";
    DR 28 "DR" "DownstreamRemoteReset";
}

/// Set with a flag that was there before all others: Envoy shows them in the order in which they were set, and of one
/// pair both orders occur.
const URX_FIRST: u32 = 1 << 31;

impl Flags {
    /// `URX`, before what the last attempt is to have.
    pub const RETRIED: Self = Self(Self::URX.0 | URX_FIRST);

    /// In the order in which they are shown.
    fn shown(self) -> impl Iterator<Item = &'static (Self, &'static str, &'static str)> {
        let first = self.0 & URX_FIRST != 0;
        let ahead = Self::ALL.iter().filter(move |flag| first && flag.0 == Self::URX);
        let rest =
            Self::ALL.iter().filter(move |flag| self.contains(flag.0) && !(first && flag.0 == Self::URX));
        ahead.chain(rest)
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// As a vector of bits.
    pub fn bits(self) -> u32 {
        self.0 & !URX_FIRST
    }

    /// `%RESPONSE_FLAGS_LONG%`.
    pub fn long(self) -> String {
        let names: Vec<_> = self.shown().map(|flag| flag.2).collect();
        if names.is_empty() { "-".into() } else { names.join(",") }
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        for (i, (_, short, _)) in self.shown().enumerate() {
            write!(f, "{}{short}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
