"""Feature values in bulk: a number of statements that no number of checkpoints changes.

lamindb writes one value at a time, validates each with pandas, and re-ranks checkpoint by
checkpoint. The rows here are the same: one `JsonValue` for a feature and a value, and a link to it.
"""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any, cast

import lamindb as ln
from django.db import connection
from django.db.models import IntegerField, Q
from django.db.models.functions import Cast
from lamindb.models import ArtifactJsonValue, JsonValue
from lamindb_setup.core.hashing import hash_dict, hash_string

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "num": (float, int),
    "str": (str,),
    "dict": (dict,),
    "datetime": (str, datetime),
    "date": (str, date),
}


def as_stored(feature: Any, value: Any) -> Any:
    """Return a value as the row of its feature holds it.

    Raises:
        TypeError: The value does not fit the type of the feature.
    """
    kind = feature._dtype_str
    if kind.startswith("list[") and isinstance(value, (list, tuple)):
        return list(value)
    if kind not in _TYPES or not isinstance(value, _TYPES[kind]):
        if kind == "int" and isinstance(value, float) and value.is_integer():
            return int(value)
        raise TypeError(f"{value!r} does not fit the type {kind} of the feature {feature.name}")
    if isinstance(value, bool) and kind != "bool":
        raise TypeError(f"{value!r} does not fit the type {kind} of the feature {feature.name}")
    if kind == "float":
        return float(cast(float, value))
    return value.isoformat() if isinstance(value, (date, datetime)) else value


def is_plain(feature: Any) -> bool:
    """Tell whether the values of a feature are JSON, and not labels in a registry."""
    kind = feature._dtype_str
    return kind in _TYPES or (kind.startswith("list[") and not kind.startswith("list[cat"))


def link_values(host: Any, values: dict[Any, Any], run: Any) -> None:
    """Link an artifact or a run with values of plain features, in four statements at most.

    Args:
        host: The saved artifact or run.
        values: Features and values as `as_stored` returns them.
        run: The run that says so.
    """
    if not values:
        return
    rows = json_values(list(values.items()), run)
    through = host.json_values.through
    name = type(host).__name__.lower()
    links = [through(**{f"{name}_id": host.id}, jsonvalue_id=row) for row in rows]
    for link in links:
        if hasattr(link, "run_id") and name != "run":
            link.run = run
    through.objects.bulk_create(links, ignore_conflicts=True)


def json_values(wanted: list[tuple[Any, Any]], run: Any) -> list[int]:
    """Return the ids of the rows for features and values; missing rows are made."""
    keys = [(feature.id, _hash(value)) for feature, value in wanted]
    found = _find(keys)
    missing = {
        key: JsonValue(feature_id=key[0], value=value, hash=key[1], run=run)
        for key, (_, value) in zip(keys, wanted, strict=True)
        if key not in found
    }
    if missing:
        # Another process may make the same row at the same moment.
        JsonValue.objects.bulk_create(missing.values(), ignore_conflicts=True)
        found |= _find(list(missing))
    return [found[key] for key in keys]


def unlink(artifact: Any, features: Iterable[Any]) -> None:
    """Remove the values that an artifact has for some features."""
    ids = [feature.id for feature in features]
    ArtifactJsonValue.objects.filter(
        artifact_id=artifact.id, jsonvalue__feature_id__in=ids
    ).delete()


def is_flagged(feature: Any, members: Any) -> bool:
    """Tell whether a flag is true for any artifact of a query."""
    links = ArtifactJsonValue.objects.filter(artifact_id__in=members)
    found: bool = links.filter(jsonvalue__feature_id=feature.id, jsonvalue__value=True).exists()
    return found


def clear_flag(feature: Any, members: Any, besides: int, run: Any) -> None:
    """Turn a flag that is true into false, for all artifacts of a query but one."""
    true, false = json_values([(feature, True), (feature, False)], run)
    ArtifactJsonValue.objects.filter(jsonvalue_id=true, artifact_id__in=members).exclude(
        artifact_id=besides
    ).update(jsonvalue_id=false)


def rank(score: Any, model_rank: Any, members: Any, mode: str, run: Any) -> None:
    """Rank the artifacts of a query by their scores, 0 for the best; the earlier wins a tie.

    Three statements, whatever the number of artifacts.

    Args:
        score: The feature that holds the scores.
        model_rank: The feature for the ranks.
        members: A query of artifact ids, and of the numbers that order them.
        mode: ``min`` or ``max``, which of the scores is the best.
        run: The run that says so.
    """
    chosen, parameters = members.query.sql_with_params()
    links, values = ArtifactJsonValue._meta.db_table, JsonValue._meta.db_table
    # Here CROSS JOIN is an inner join that SQLite takes in the order of the text. In the order that
    # it prefers, the time grows with the square of the number of artifacts.
    scored = f"""
        SELECT l.artifact_id AS id, CAST(v.value AS DOUBLE PRECISION) AS score,
            COALESCE(member.number, -1) AS number
        FROM ({chosen}) AS member CROSS JOIN {links} l CROSS JOIN {values} v
        WHERE l.artifact_id = member.id AND v.id = l.jsonvalue_id AND v.feature_id = %s
    """  # noqa: S608  no value of a user is in the text
    # Both databases know UPDATE ... FROM and window functions, Django's ORM does not.
    order = "ASC" if mode == "min" else "DESC"
    statement = f"""
        WITH scored AS ({scored}),
        ranked AS (
            SELECT id, ROW_NUMBER() OVER (ORDER BY score {order}, number, id) - 1 AS position
            FROM scored
        ),
        numbers AS MATERIALIZED (
            SELECT id, CAST(value AS INTEGER) AS number FROM {values} WHERE feature_id = %s
        )
        UPDATE {links} AS link SET jsonvalue_id = numbers.id
        FROM ranked CROSS JOIN numbers
        WHERE numbers.number = ranked.position AND link.artifact_id = ranked.id
            AND link.jsonvalue_id <> numbers.id AND EXISTS (
                SELECT 1 FROM {values} AS old
                WHERE old.id = link.jsonvalue_id AND old.feature_id = %s
            )
    """  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM ({scored}) AS s", [*parameters, score.id])  # noqa: S608
        count = cursor.fetchone()[0]
        ranks = JsonValue.objects.annotate(number=Cast("value", IntegerField()))
        wanted = ranks.filter(feature_id=model_rank.id, number__range=(0, count - 1))
        if (known := wanted.count()) < count:
            # They are there without a gap, unless somebody has made some by hand.
            first = known if not wanted.filter(number__gte=known).exists() else 0
            json_values([(model_rank, number) for number in range(first, count)], run)
        cursor.execute(statement, [*parameters, score.id, model_rank.id, model_rank.id])


def _hash(value: Any) -> str:
    return str(hash_dict(value) if isinstance(value, dict) else hash_string(str(value)))


def _find(keys: list[tuple[int, str]]) -> dict[tuple[int, str], int]:
    found: dict[tuple[int, str], int] = {}
    for start in range(0, len(keys), 400):  # SQLite takes 999 parameters
        either = Q()
        for feature_id, digest in keys[start : start + 400]:
            either |= Q(feature_id=feature_id, hash=digest)
        rows = JsonValue.objects.filter(either).values_list("feature_id", "hash", "id")
        found |= {(feature_id, digest): row for feature_id, digest, row in rows}
    return found


def features_by_name(names: Iterable[str], of_lightning: bool = False) -> dict[str, Any]:
    """Return the features of some names: those of Lightning, or any."""
    found = ln.Feature.objects.filter(name__in=list(names), is_type=False).order_by("-type_id")
    if of_lightning:
        found = found.filter(type__name="lamindb.lightning")
    return {feature.name: feature for feature in found}


def features_by_uid(uids: Iterable[str]) -> dict[str, Any]:
    """Return the features of some uids."""
    return {feature.uid: feature for feature in ln.Feature.objects.filter(uid__in=list(uids))}
