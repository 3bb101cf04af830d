"""Which runs are found, on a server with many others."""

from types import SimpleNamespace

import pytest

from sweeps.engine.tracking.search import search_sweeps


class Page(list):
    token = None


@pytest.mark.parametrize("experiments", [0, 1000, 1500])
def test_a_sweep_is_found_among_more_experiments_than_fit_in_a_page(experiments):
    asked = []

    class Client:
        def search_experiments(self, view_type, max_results, page_token):
            first = int(page_token or 0)
            ids = range(first, min(experiments, first + max_results))
            page = Page(SimpleNamespace(experiment_id=str(i)) for i in ids)
            page.token = str(first + max_results) if first + max_results < experiments else None
            return page

        def search_runs(self, ids, where, view, max_results, page_token):
            asked.extend(ids)
            return Page()

    search_sweeps(Client(), "s")
    assert asked == [str(i) for i in range(experiments)]
