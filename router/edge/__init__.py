"""The edge: Envoy's bootstrap and its Lua, for clients that do not speak xDS."""
