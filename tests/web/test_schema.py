"""The API does what its OpenAPI schema says, whatever is asked: schemathesis makes the requests."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from .serving import TOKEN

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
GenerationMode = pytest.importorskip("schemathesis.generation").GenerationMode

AUTH = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [
    "GET /api/info",
    "GET /api/search",
    "GET /api/graph",
    "GET /api/compare",
    "GET /api/feature",
    "GET /api/export",
    "GET /api/results",
    "GET /results/{id}",
    "GET /results/{id}/files/{number}",
    "GET /api/model",
    "POST /api/model",
    "POST /api/plan",
    "POST /api/plan/check",
    "POST /api/steer",
    "POST /api/text",
    "POST /api/deactivate",
    "POST /api/trace",
    "POST /api/trace/export",
]


@pytest.fixture(scope="module")
def operations(served):
    schema = schemathesis.openapi.from_url(f"{served.base}/api/openapi.json", headers=AUTH)
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_operation_is_tried(operations):
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")  # schemathesis does
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_as_the_schema_says(operations, label, mode):
    @given(case=operations[label].as_strategy(generation_mode=mode))
    @settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        # a request that fits the schema may still name features that do not go together: then it gets a 422
        case.call_and_validate(headers=AUTH, timeout=20, excluded_checks=[checks.positive_data_acceptance])

    ask()


def test_the_schema_names_every_route_and_how_to_be_let_in(client):
    told = client.get("/api/openapi.json").json()
    assert set(told["paths"]) == {
        "/api/info",
        "/api/search",
        "/api/graph",
        "/api/compare",
        "/api/feature",
        "/api/export",
        "/api/results",
        "/results/{id}",
        "/results/{id}/files/{number}",
        "/api/model",
        "/api/plan",
        "/api/plan/check",
        "/api/steer",
        "/api/text",
        "/api/deactivate",
        "/api/trace",
        "/api/trace/export",
    }
    assert told["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, methods in told["paths"].items():
        for method, route in methods.items():
            assert route["security"] == [{"HTTPBearer": []}], (path, method)
            problem = route["responses"]["default"]["content"]["application/json"]["schema"]
            assert problem == {"$ref": "#/components/schemas/Problem"}
    models = told["components"]["schemas"]
    assert all(model.get("additionalProperties") is False for model in models.values() if "properties" in model)
