//! `envoy.filters.http.rbac`, of a filter and of a route. One refused rule refuses the whole.

use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as pb;

use crate::lower::registry::registry;
use crate::model::http::filters::HttpRbac;

registry! { pb::Rbac, pb::RbacPerRoute }

lower! { "envoy.extensions.filters.http.rbac.v3.RBAC" pb::Rbac => HttpRbac, cx;
    read { rules, rules_stat_prefix, shadow_rules, shadow_rules_stat_prefix, track_per_rule_stats }
    reject {
        matcher: "matching trees are not implemented: use rules",
        shadow_matcher: "matching trees are not implemented: use shadow_rules",
    }
    {
        let given = (rules.is_some(), shadow_rules.is_some());
        let rules = cx.for_requests(|cx| rules.and_then(|rules| cx.lower("rules", rules)));
        let shadow_rules = cx.for_requests(|cx| shadow_rules.and_then(|rules| cx.lower("shadow_rules", rules)));
        if given != (rules.is_some(), shadow_rules.is_some()) {
            return None;
        }
        Some(HttpRbac {
            rules,
            rules_stat_prefix: rules_stat_prefix.into(),
            shadow_rules,
            shadow_rules_stat_prefix: shadow_rules_stat_prefix.into(),
            track_per_rule_stats,
        })
    }
}

lower! { "envoy.extensions.filters.http.rbac.v3.RBACPerRoute" pb::RbacPerRoute => Option<Box<HttpRbac>>, cx;
    read { rbac }
    {
        match rbac {
            Some(rbac) => cx.lower("rbac", rbac).map(Box::new).map(Some),
            // As in Envoy: nobody is kept out here.
            None => Some(None),
        }
    }
}
