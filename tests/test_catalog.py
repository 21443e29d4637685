from pathlib import Path

import pytest

from router_ml import Catalog, ConfigError, Tier

ACME = """
[router]
route = ["acme"]
[providers.acme]
base_url = "https://llm.acme.example/v1"
models = { simple = "s", complex = "m", premium = "l" }
"""


def load(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "router.toml"
    path.write_text(text)
    return Catalog.load(path)


def test_one_line_changes_the_provider(tmp_path: Path) -> None:
    packaged = Catalog.load()
    assert str(packaged.routed(Tier.SIMPLE)[0]) == "global-api/deepseek-v4-flash"
    for name in packaged.providers:
        catalog = load(tmp_path, f'[router]\nroute = ["{name}"]')
        assert {catalog.routed(tier)[0].provider for tier in Tier} == {name}


def test_five_lines_add_a_provider(tmp_path: Path) -> None:
    assert [load(tmp_path, ACME).routed(tier)[0].model for tier in Tier] == ["s", "m", "l"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[router]\nqualty = 1.0", "unknown key 'qualty'; did you mean 'quality'"),
        ("[router]\nquality = 1.5", r"quality = .*1\.5.* is outside \(0, 1\]"),
        ("[router]\nquality = nan", "quality"),
        ("[router]\nroute = []", "route is empty"),
        ("[router]\nroute = ['grok']", "unknown provider 'grok'.*groq"),
        ("[router]\nmax_attempts = 0", "max_attempts = 0 must be above 0"),
        ("[router", "is not TOML"),
        ("[providers.acme]\nbase_url = 3", r"base_url.*not 3"),
        ("[[offers]]\nprovider = 'groq'\nmodel = 'm'\ntier = 'big'", "'simple', 'complex' or 'premium', not 'big'"),
        ("[[offers]]\nprovider = 'groq'\nmodel = 'm'\ntier = 'simple'\n" * 2, "offered twice"),
        ("[router]\nroute = ['a']\n[providers.a]\nbase_url = 'u'\nmodels = { simple = 's' }", "offer for tier complex"),
    ],
)
def test_a_wrong_file_is_refused_with_the_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Catalog.load(tmp_path / "none.toml")
