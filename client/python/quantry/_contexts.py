"""Servers remembered by `quantry login`: the settings connect() was not given.

An argument beats the environment, which beats the context. A token goes to the server it is for: a context that is
named (the argument, else QUANTRY_CONTEXT unless a target is given) brings its server, and the current one stands aside
when an argument or QUANTRY_SERVER names one.
"""
from __future__ import annotations

import dataclasses
import json
import os
from typing import Optional

from quantry import errors
from quantry._options import Options

SYSTEM_CAS = "system"
KEYS = ("server", "tls_ca", "client_cert", "client_key", "token_file", "tenant")
VARIABLES = {"tls_ca": "QUANTRY_TLS_CA_FILE", "client_cert": "QUANTRY_CLIENT_CERT_FILE",
             "client_key": "QUANTRY_CLIENT_KEY_FILE", "token_file": "QUANTRY_TOKEN_FILE", "tenant": "QUANTRY_TENANT"}
HINT = "repair the file, or remove it and run `quantry login` again"


def contexts_path() -> str:
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(folder, "quantry", "config.json")


def load_contexts() -> tuple[str, dict[str, dict[str, str]]]:
    """The current context's name ("" without one) and all of them by name."""
    path = contexts_path()
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError:
        return "", {}
    except ValueError as error:
        raise errors.InvalidRequest(f"{path}: wanted JSON, got something else: {error}", hint=HINT) from None
    contexts = found.get("contexts", {}) if isinstance(found, dict) else None
    if not isinstance(contexts, dict):
        raise errors.InvalidRequest(f"{path}: wanted a JSON object with current and contexts", hint=HINT)
    for name, context in contexts.items():
        if not isinstance(context, dict) or not context.get("server") or not all(
                key in KEYS and isinstance(value, str) for key, value in context.items()):
            raise errors.InvalidRequest(f"{path}: contexts.{name}: wanted server and text under {', '.join(KEYS[1:])}",
                                        hint=HINT)
    return str(found.get("current", "")), contexts


def _choose(name: str, server_named: bool) -> tuple[str, dict[str, str]]:
    if not name and server_named:
        return "", {}
    current, contexts = load_contexts()
    name = name or current
    if name and name not in contexts:
        raise errors.InvalidRequest(f"no context \"{name}\": wanted "
                                    f"{', '.join(sorted(contexts)) or 'one made by `quantry login`'}")
    return name, contexts.get(name, {})


def settle(options: Options, tenant: Optional[str], context: Optional[str]) -> tuple[Options, str]:
    """The options with what was left out filled in, and the tenant."""
    if options.tls_ca == SYSTEM_CAS and options.tls is not False:  # as the command line says it
        options = dataclasses.replace(options, tls=True, tls_ca=None)
    variable = os.environ.get("QUANTRY_SERVER", "")
    target, source = options.target or "", "connect()"
    if not target and not context and variable:  # the argument is said now, the variable was said some time
        target, source = variable, "QUANTRY_SERVER"
    name, chosen = _choose(context or ("" if options.target else os.environ.get("QUANTRY_CONTEXT", "")), bool(target))
    if chosen and target and target != chosen["server"]:
        raise errors.InvalidRequest(
            f"wanted one server, got two: {source} names {target}, context \"{name}\" is for {chosen['server']}, and a "
            "token goes to the server it is for", hint="leave one of them out, or make a context for that address")
    if chosen:
        target, source = chosen["server"], f"context {name}"
    # Credentials in the environment are for the server in the environment.
    elsewhere = variable not in ("", target)
    found = {key: (os.environ.get(setting) if key == "tenant" or not elsewhere else "") or chosen.get(key)
             for key, setting in VARIABLES.items()}
    changes: dict[str, object] = {"target": target or None, "source": source}
    if options.tls is None and options.tls_ca is None and found["tls_ca"]:
        changes.update({"tls": True} if found["tls_ca"] == SYSTEM_CAS else {"tls_ca": found["tls_ca"]})
    if options.tls is not False and options.tls_cert is None and options.tls_key is None:
        changes.update(tls_cert=found["client_cert"], tls_key=found["client_key"])
    if options.token is None and options.token_file is None:
        changes["token_file"] = found["token_file"]
    return dataclasses.replace(options, **changes), tenant or found["tenant"] or "default"  # type: ignore[arg-type]
