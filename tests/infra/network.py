"""NetworkPolicies, read as Kubernetes reads those that select pods of their own namespace.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """What Kubernetes says of a selector: all its conditions hold."""
    operators = {"In"}
    conditions = selector.get("matchExpressions", [])
    assert {each["operator"] for each in conditions} <= operators
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in conditions
    )


def _rules(policies: list[Document], way: str, labels: dict[str, str]) -> list[Document] | None:
    """Rules of the policies that select a pod; None if none does, so that all is let through."""
    selecting = [p for p in policies if way in p["policyTypes"] and selects(p["podSelector"], labels)]
    return [rule for p in selecting for rule in p.get(way.lower(), [])] if selecting else None


def passes(policies: list[Document], way: str, own: dict[str, str], other: dict[str, str], port: int) -> bool:
    rules = _rules(policies, way, own)
    peers = "to" if way == "Egress" else "from"
    return rules is None or any(
        port in {each["port"] for each in rule["ports"]}
        and (peers not in rule or any(selects(peer["podSelector"], other) for peer in rule[peers]))
        for rule in rules
    )


def outside(policies: list[Document], labels: dict[str, str]) -> set[int]:
    """Ports at which a pod may call anything, wherever it is."""
    rules = _rules(policies, "Egress", labels)
    assert rules is not None, labels
    return {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}
