//! `envoy.filters.http.lua`. Scripts are compiled where the filter is built.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::lua::v3 as pb;

use crate::lower::http::action::content;
use crate::lower::registry::registry;
use crate::lower::value::{flag, structure};
use crate::model::http::Content;
use crate::model::http::filters::{Lua, LuaOverride, LuaPerRoute};

registry! { pb::Lua, pb::LuaPerRoute }

const NO_PACKAGES: &str = "modules in other files are not loaded: a script has all of its code";

lower! { "envoy.extensions.filters.http.lua.v3.Lua" pb::Lua => Lua, cx;
    read { inline_code, source_codes, default_source_code, stat_prefix, clear_route_cache, filter_context }
    reject {
        package_paths: NO_PACKAGES,
        package_cpaths: NO_PACKAGES,
    }
    {
        if !inline_code.is_empty() && default_source_code.is_some() {
            let why = "Error: Only one of `inline_code` or `default_source_code` can be set for the Lua filter.";
            cx.reject("default_source_code", why);
        }
        let inline = (!inline_code.is_empty()).then(|| Content::inline(&inline_code));
        let code = default_source_code.and_then(|code| cx.lower("default_source_code", code)).map(content);
        let named = cx.map("source_codes", source_codes);
        Some(Lua {
            code: code.or(inline),
            named: named.into_iter().map(|(name, code)| (name, content(code))).collect(),
            stat_prefix: stat_prefix.into(),
            clear_route_cache: flag(clear_route_cache, true),
            filter_context: filter_context.map(structure).unwrap_or_default(),
        })
    }
}

lower! { "envoy.extensions.filters.http.lua.v3.LuaPerRoute" pb::LuaPerRoute => LuaPerRoute, cx;
    read { filter_context, r#override }
    reject {
        package_paths: NO_PACKAGES,
        package_cpaths: NO_PACKAGES,
    }
    {
        use pb::lua_per_route::Override;
        let code = match r#override {
            None => LuaOverride::None,
            Some(Override::Disabled(true)) => LuaOverride::Disabled,
            Some(Override::Disabled(false)) => {
                cx.reject("disabled", "must be true");
                return None;
            }
            Some(Override::Name(name)) => {
                let name: Arc<str> = cx.name("name", name)?;
                LuaOverride::Named(name)
            }
            Some(Override::SourceCode(source)) => LuaOverride::Code(cx.lower("source_code", source).map(content)?),
        };
        Some(LuaPerRoute { code, filter_context: filter_context.map(structure).unwrap_or_default() })
    }
}
