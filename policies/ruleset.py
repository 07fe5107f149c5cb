"""Rule files: read, checked and put together once, before anything is decided by them.

The shipped files must hold exactly one `permit` and exactly the rules that `controls.CONTROLS` lists, so that a lost or
renamed file stops the datasite instead of dropping a control. A hospital's own files may only hold `forbid`s: Cedar
lets a forbid win over any permit, so whatever they say narrows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cedarpy

from datasites.study.canonical import canonical_json, sha256_hex
from datasites.study.errors import DatasitesError
from policies.controls import CONTROLS

SHIPPED = Path(__file__).parent / "rules"
SCHEMA = Path(__file__).parent / "schema.cedarschema"
PERMIT = "permit"
#: Entity type of who acts in a rule: the approval, by its hash. OLD_PRINCIPAL: what earlier versions called it.
PRINCIPAL, OLD_PRINCIPAL = "Approval", "Study"

#: A rule file above this is no rule file.
LARGEST_FILE = 64 * 1024


class RuleError(DatasitesError, ValueError):
    """A rule file is missing, malformed or allows too much; names the file, the rule and the remedy."""


@dataclass(frozen=True)
class Rule:
    """One `forbid`. control: the file's name (with "local/" before it for a hospital's own); id: unique.

    title, law, remedy come from the rule's annotations. For a local rule, title is the reason people are shown.
    """

    id: str
    control: str
    title: str
    law: str
    remedy: str
    origin: Literal["shipped", "local"]
    file: str


@dataclass(frozen=True)
class RuleSet:
    """Checked rules in Cedar's parsed form. scopes: the same rules without conditions, to ask which ones apply."""

    rules: tuple[Rule, ...]
    policies: cedarpy.PolicySet
    scopes: cedarpy.PolicySet
    schema: cedarpy.Schema
    digest: str

    @classmethod
    def load(cls, shipped_dir: Path, local_dir: Path | None = None) -> RuleSet:
        """Read and check all files; raises `RuleError`."""
        texts = {path.name: _read(path) for path in _files(shipped_dir, "shipped")}
        local = {path.name: _read(path) for path in _files(local_dir, "local")} if local_dir else {}
        return _checked(_read(SCHEMA), tuple(texts.items()), tuple(local.items()), shipped_dir)


@functools.lru_cache(maxsize=4)
def _checked(
    schema_text: str, texts: tuple[tuple[str, str], ...], local: tuple[tuple[str, str], ...], shipped_dir: Path
) -> RuleSet:
    """Check rule files, of which name and text are given; the same ones are checked once, however often people ask."""
    schema = _schema(schema_text)
    rules: list[Rule] = []
    static: dict[str, dict[str, Any]] = {}
    for name, text in texts:
        for policy in _parse(name, text, schema):
            rule = _shipped(name, policy)
            _once(name, rule.id, static)
            static[rule.id] = policy
            if rule.id != PERMIT:
                rules.append(rule)
    _complete(static, shipped_dir)
    for name, text in local:
        for policy in _parse(name, text, schema):
            rule = _local(name, policy)
            _once(name, rule.id, static)
            static[rule.id] = policy
            rules.append(rule)
    digests = {
        "schema": sha256_hex(schema_text.encode()),
        "shipped": {name: sha256_hex(text.encode()) for name, text in texts},
        "local": {name: sha256_hex(text.encode()) for name, text in local},
    }
    return RuleSet(
        rules=tuple(rules),
        policies=_policy_set(static),
        scopes=_policy_set({id: {**policy, "conditions": []} for id, policy in static.items()}),
        schema=schema,
        digest=sha256_hex(canonical_json(digests)),
    )


def _files(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise RuleError(f"{folder}: no folder of {what} rules there; correct the configuration")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in files:
        # A misnamed file would otherwise be a control that somebody believes in and nobody evaluates.
        if path.suffix != ".cedar" and path.name != "README.md":
            raise RuleError(f"{path}: only .cedar files (and README.md) may stand here; rename or remove it")
    return [path for path in files if path.suffix == ".cedar"]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RuleError(f"{path}: larger than {LARGEST_FILE} bytes; a rule file is a page or two")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path}: can't be read: {error}") from error


def _schema(text: str) -> cedarpy.Schema:
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise RuleError(f"{SCHEMA.name}: not a Cedar schema: {error}") from error


def _parse(name: str, text: str, schema: cedarpy.Schema) -> list[dict[str, Any]]:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise RuleError(f"{name}: not valid Cedar: {error}") from error
    if parsed["templates"] or parsed["templateLinks"]:
        raise RuleError(f"{name}: templates (?principal, ?resource) are not used here; write the rule out")
    if not parsed["staticPolicies"]:
        raise RuleError(f"{name}: holds no rule; remove the file or restore it")
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        if _names_type(parsed["staticPolicies"], OLD_PRINCIPAL):
            raise RuleError(
                f"{name}: names the entity type {OLD_PRINCIPAL}, which is called {PRINCIPAL} now: its id always was "
                f'the approval hash. Write `{PRINCIPAL}::"…"` and `principal is {PRINCIPAL}` instead; nothing else in '
                "the rule changes"
            )
        names = result.id_annotations_by_policy_id
        problems = sorted({f"rule {names.get(e.policy_id, e.policy_id)}: {e.error}" for e in result.errors})
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise RuleError(f"{name}: does not fit {SCHEMA.name}: {'; '.join(problems[:3])}{more}")
    return list(parsed["staticPolicies"].values())


def _names_type(parsed: Any, type: str) -> bool:
    """Return whether a policy in Cedar's JSON form names an entity of this type, in its scope or in a condition."""
    if isinstance(parsed, Mapping):
        return type in (parsed.get("type"), parsed.get("entity_type")) or _names_type(list(parsed.values()), type)
    return isinstance(parsed, list) and any(_names_type(part, type) for part in parsed)


def _annotation(name: str, policy: dict[str, Any], key: str) -> str:
    value = (policy.get("annotations") or {}).get(key)
    if not value:
        raise RuleError(f'{name}: a rule lacks @{key}("…"); every rule needs it, so that a denial can name it')
    return str(value)


def _shipped(name: str, policy: dict[str, Any]) -> Rule:
    id, control = _annotation(name, policy, "id"), name.removesuffix(".cedar")
    if id != control and not id.startswith(control + "-"):
        raise RuleError(f'{name}: @id("{id}") must be "{control}" or begin with "{control}-"')
    if id == PERMIT:
        if policy["effect"] != "permit" or policy["conditions"]:
            raise RuleError(f"{name}: must hold the one permit, without conditions; restore the shipped file")
        return Rule(id, control, "", "", "", "shipped", name)
    if policy["effect"] != "forbid":
        raise RuleError(f"{name}: rule {id} is a {policy['effect']}; only {PERMIT}.cedar permits")
    return Rule(id, control, _annotation(name, policy, "title"), _annotation(name, policy, "law"), "", "shipped", name)


def _local(name: str, policy: dict[str, Any]) -> Rule:
    id, stem = _annotation(name, policy, "id"), name.removesuffix(".cedar")
    if policy["effect"] != "forbid":
        raise RuleError(f"{name}: local rule {id} is a {policy['effect']}; a hospital's own rules may only forbid")
    title, remedy = _annotation(name, policy, "title"), _annotation(name, policy, "remedy")
    law = str((policy.get("annotations") or {}).get("law") or "")
    return Rule(f"local/{id}", f"local/{stem}", title, law, remedy, "local", name)


def _once(name: str, id: str, static: dict[str, dict[str, Any]]) -> None:
    if id in static:
        raise RuleError(f'{name}: @id("{id}") appears twice; give each rule its own')


def _complete(static: dict[str, dict[str, Any]], folder: Path) -> None:
    expected = {PERMIT, *CONTROLS}
    missing, unknown = sorted(expected - set(static)), sorted(set(static) - expected)
    if missing:
        raise RuleError(f"{folder}: rule(s) {', '.join(missing)} missing; restore the shipped rule files")
    if unknown:
        raise RuleError(
            f"{folder}: unknown rule(s) {', '.join(unknown)}; a hospital's own rules go in its local folder"
        )


def _policy_set(static: dict[str, dict[str, Any]]) -> cedarpy.PolicySet:
    whole = {"staticPolicies": static, "templates": {}, "templateLinks": []}
    return cedarpy.PolicySet.from_json_str(json.dumps(whole))
