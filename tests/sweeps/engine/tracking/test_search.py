"""Which runs are found, on a server with many others."""

from types import SimpleNamespace

import pytest

from sweeps.engine.tracking.search import search, search_sweeps


class Page(list):
    token = None


def page_of(everything, max_results, page_token):
    first = int(page_token or 0)
    page = Page(everything[first : first + max_results])
    page.token = str(first + max_results) if first + max_results < len(everything) else None
    return page


@pytest.mark.parametrize("experiments", [0, 1000, 1500])
def test_a_sweep_is_found_among_more_experiments_than_fit_in_a_page(experiments):
    asked = []

    class Client:
        def search_experiments(self, view_type, **page):
            return page_of(
                [SimpleNamespace(experiment_id=str(i)) for i in range(experiments)], **page
            )

        def search_runs(self, ids, where, view, max_results, page_token):
            asked.extend(ids)
            return Page()

    search_sweeps(Client(), "s")
    assert asked == [str(i) for i in range(experiments)]


@pytest.mark.parametrize("runs", [0, 1000, 2500])
def test_all_runs_are_found_among_more_than_fit_in_a_page(runs):
    class Client:
        def search_runs(self, ids, where, view, **page):
            assert (ids, where) == (["7"], "tags.`sweep` = 's'")
            return page_of(range(runs), **page)

    assert search(Client(), ["7"], {"sweep": "s"}) == list(range(runs))
