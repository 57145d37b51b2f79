"""Keys of known services, one row each, and texts that only look a little like them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagegraph.tracing.secrets import Scrubber

scrubbed = Scrubber().scrubbed

HEX = "0123456789abcdef" * 4
MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC2dE3"
UPPER = "ABCDEFGH23456789"
BASE64 = "aB3/dE5+gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC2dE3fG4hI5jK6lM7nO8pQ9r=="

KEYS = {
    "Groq": "gsk_" + MIXED,
    "xAI": "xai-" + MIXED,
    "Replicate": "r8_" + MIXED,
    "npm": "npm_" + MIXED[:36],
    "Twilio account": "AC" + HEX[:32],
    "Twilio key": "SK" + HEX[:32],
    "Azure storage": "AccountKey=" + BASE64,
    "Azure service bus": "SharedAccessKey=" + BASE64,
    "Azure SAS": "sig=" + BASE64.replace("/", "%2F").replace("+", "%2B"),
    "OpenAI": "sk-proj-" + MIXED,
    "Anthropic": "sk-ant-api03-" + MIXED,
    "OpenRouter": "sk-or-v1-" + HEX,
    "Langfuse": "sk-lf-" + MIXED,
    "Stripe": "sk_live_" + MIXED,
    "Stripe restricted": "rk_live_" + MIXED,
    "Stripe webhook": "whsec_" + MIXED,
    "Hugging Face": "hf_" + MIXED,
    "GitHub": "ghp_" + MIXED[:36],
    "GitHub app": "ghs_" + MIXED[:36],
    "GitHub fine-grained": "github_pat_11ABCDE_" + MIXED,
    "GitLab": "glpat-" + MIXED[:20],
    "GitLab runner": "glrt-" + MIXED[:20],
    "SendGrid": "SG." + MIXED[:22] + "." + MIXED,
    "Mailgun": "key-" + HEX[:32],
    "Brevo": "xkeysib-" + HEX,
    "Slack bot": "xoxb-123456789012-" + MIXED[:24],
    "Slack session": "xoxs-123456789012-" + MIXED[:24],
    "Slack app": "xapp-1-A123-" + MIXED,
    "Slack webhook": "hooks.slack.com/services/T00000000/B00000000/" + MIXED[:24],
    "Discord webhook": "discord.com/api/webhooks/123456789012345678/" + MIXED,
    "Google": "AIza" + MIXED[:35],
    "Google OAuth": "ya29." + MIXED,
    "Google client": "GOCSPX-" + MIXED[:28],
    "AWS": "AKIA" + UPPER,
    "AWS temporary": "ASIA" + UPPER,
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + MIXED,
    "Docker": "dckr_pat_" + MIXED[:27],
    "DigitalOcean": "dop_v1_" + HEX,
    "Databricks": "dapi" + HEX[:32],
    "Vault": "hvs." + MIXED,
    "Shopify": "shpat_" + HEX[:32],
    "Linear": "lin_api_" + MIXED,
    "Notion": "ntn_" + MIXED,
    "Notion of before": "secret_" + MIXED,
    "Voyage": "pa-" + MIXED + "xY0_",
    "Airtable": "pat" + MIXED[:14] + "." + HEX,
    "HubSpot": "pat-na1-01234567-89ab-cdef-0123-456789abcdef",
    "PostHog": "phx_" + MIXED,
    "Vercel": "vercel_blob_rw_" + MIXED,
    "Telegram": "api.telegram.org/bot123456789:AA" + MIXED[:33],
    "address": "?token=" + MIXED,
    "NVIDIA": "nvapi-" + MIXED,
    "Perplexity": "pplx-" + MIXED,
    "Pinecone": "pcsk_" + MIXED,
    "LangSmith": "lsv2_pt_" + MIXED,
    "Grafana": "glsa_" + MIXED,
    "Sentry": "sntrys_" + MIXED,
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + MIXED,
    "connection string": "s3cr3t-of-the-database",
    "PEM": MIXED,
}
AROUND = {
    "connection string": "postgresql://app:{}@db.example:5432/shop",
    "PEM": "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("service", list(KEYS))
@pytest.mark.parametrize(
    "around", ["{}", "the answer is {}, as agreed.", "X={}", "({})", "https://a.example/?k={}&b=1", "first\n{}\nlast"]
)
def test_the_key_of_a_service_is_hidden(service: str, around: str) -> None:
    """Wherever it stands in a text, in JSON and in JSON inside JSON, and the words around it stay."""
    key = KEYS[service]
    text = around.format(AROUND.get(service, "{}").format(key))
    for sent in (text, json.dumps({"log": [text]}), json.dumps({"log": json.dumps({"inner": text})})):
        clean = scrubbed(sent)
        assert key not in clean
        assert key[-16:] not in clean
        assert "[secret]" in clean
    assert scrubbed(text).startswith(around.partition("{}")[0][:3])


PROSE = """
The account in the AC room pays SK 200 for the NPM conference; key-value stores, sig-nature dishes and fw_ prefixes are fine.
Run `npm_config_registry=https://registry.example npm install`, then `pip install pypi-simple`. The gsk_ prefix is Groq's,
r8_ is Replicate's and xai- is xAI's. SG.1 is a seat, and hvs.read is a verb. Tickets ACME-2041 and SKU SK1029384756 are open.
The commit is 3f786850e387550fdab836ed7e6dc881de23001b, the digest sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e7304.
See https://hooks.slack.com/help and https://discord.com/api/docs. An UUID is 123e4567-e89b-12d3-a456-426614174000.
"""


def test_ordinary_text_stays() -> None:
    """Prose with prefixes, hashes, ids and links is sent as it is."""
    assert scrubbed(PROSE) == PROSE


WORDS = sorted(set((Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8").split()))


@given(
    st.lists(st.sampled_from(WORDS) | st.integers().map(str) | st.uuids().map(str) | st.dates().map(str), max_size=40)
)
def test_words_in_any_order_stay(words: list[str]) -> None:
    """No sequence of ordinary words, numbers, ids and dates is taken for a key of a service."""
    text = " ".join(
        word for word in words if not any(stem in word.lower() for stem in ("pass", "key", "secret", "token"))
    )
    assert scrubbed(text) == text
