"""Rules that are made for one family at a time are made when a file of it is judged, and no others with them."""

from lora_inspect.programs.record import COMPUTES, SILENT, Loader, Rule, RulesByFamily, Strangers


def test_those_of_one_family_are_made_once_and_alone():
    made = []

    def make(family):
        made.append(family)
        yield Rule(prefixes=(family,))
        yield Rule(families=("other",))

    rules = RulesByFamily(("wan", "flux"), make)
    loader = Loader(rules=rules, strangers=Strangers(SILENT), families=("wan", "flux"))
    assert made == []
    assert loader.rules_for("wan") == loader.rules_for("wan") == [Rule(prefixes=("wan",))]
    assert loader.rules_for("pagoda") == loader.rules_for("") == []
    assert made == ["wan"]
    assert [rule.prefixes for rule in rules] == [("wan",), (), ("flux",), ()]
    assert made == ["wan", "flux"]


def test_rules_of_no_family_are_for_all():
    loader = Loader(rules=(Rule(kinds={"lora": COMPUTES}), Rule(families=("wan",))), strangers=Strangers(SILENT))
    assert [len(loader.rules_for(family)) for family in ("wan", "flux", "")] == [2, 1, 1]


def test_to_know_the_programs_is_to_import_no_family(run_process):
    code = "import sys, lora_inspect.programs; print([name for name in sys.modules if '.families.' in name])"
    assert run_process("-c", code).stdout == "[]\n"
