//! Names that Envoy has given up and configurations still carry.

use crate::proto::schema::{self, Message};

/// The field that an old name means today.
pub(super) fn field(message: &Message, name: &str) -> Option<&'static str> {
    const RENAMED: [(&str, &str, &str); 2] = [
        ("stats.PluginConfig", "rotation_interval", "rescoping_duration"),
        ("stats.PluginConfig", "graceful_deletion_interval", "scope_grace_period_duration"),
    ];
    let snake = snake(name);
    // What the v2 API called `x`, early dumps of the v3 API call this.
    let hidden = snake.strip_prefix("hidden_envoy_deprecated_").and_then(|name| message.field(name));
    let renamed = RENAMED.iter().find(|(owner, old, _)| *owner == message.name && *old == snake);
    let found = match renamed {
        Some((_, _, new)) => message.field(new),
        None => hidden,
    };
    found.and_then(|(index, _)| schema::message(message.name)?.fields.get(index)).map(|field| field.name)
}

/// What to write instead of a field that has no direct successor.
pub(super) fn gone(message: &Message, name: &str) -> Option<&'static str> {
    let snake = snake(name);
    let name = snake.strip_prefix("hidden_envoy_deprecated_").unwrap_or(&snake);
    let has = |field: &str| message.field(field).is_some();
    match name {
        "config" if has("typed_config") => {
            Some("the v2 API's; put it under typed_config, with its \"@type\"")
        }
        "tls_context" if has("transport_socket") => Some(
            "the v2 API's; write transport_socket with name envoy.transport_sockets.tls and a typed_config",
        ),
        "hosts" if has("load_assignment") => Some("the v2 API's; write load_assignment"),
        "filter_chain" if has("filter_chains") => Some("write filter_chains, a list"),
        _ => None,
    }
}

/// The name of a type that replaced `name`, for messages.
pub(super) fn successor(name: &str) -> Option<&'static str> {
    schema::successor(name)
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}
