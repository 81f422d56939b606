"""The variants that only the playground asks for: loaded when first asked for, and kept until the service stops."""

from __future__ import annotations

import asyncio

from crossforge.profiles import CrossforgeError, Precision
from crossforge.runtime.serving.errors import Kind, ProblemError, problem_of
from crossforge.runtime.serving.health import warm_up
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.service import Service

_Key = tuple[ServedModel, Precision]


class Variants:
    """Each variant of each served model at most once, so that the bundles bound the memory.

    Args:
        service: Whose models, settings and metrics they share.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loading: dict[_Key, asyncio.Task[ServedModel]] = {}

    def offered(self, model: ServedModel) -> list[Precision]:
        """The variants that can be asked for; the one that is served first."""
        served = model.reranker.precision
        others = model.reranker.manifest.variants if model.open_variant else ()
        return [served, *(precision for precision in others if precision != served)]

    def is_loaded(self, model: ServedModel, precision: Precision) -> bool:
        """Whether it answers at once."""
        task = self._loading.get((model, precision))
        return precision == model.reranker.precision or (task is not None and task.done())

    async def get(self, model: ServedModel, name: str) -> ServedModel:
        """A variant of a model, loaded and warmed up.

        Raises:
            ProblemError: There is no such variant, it does not load, or not within the service's timeout.
        """
        offered = self.offered(model)
        if name == model.reranker.precision:
            return model
        if name not in offered:
            raise ProblemError(Kind.NOT_FOUND, f"there is no variant {name[:100]!r}; offered: {', '.join(offered)}")
        key = model, Precision(name)
        if key not in self._loading:
            self._loading[key] = asyncio.create_task(self._load(*key))
        try:
            # Shielded: whoever else waits for it, or comes later, still gets it.
            return await asyncio.wait_for(asyncio.shield(self._loading[key]), self._service.settings.timeout_s)
        except TimeoutError:
            message = f"the {name} variant is still being loaded; try again soon"
            raise ProblemError(Kind.DEADLINE, message, retry_after_s=1) from None
        except CrossforgeError as error:
            problem = problem_of(error)
            message = f"the {name} variant cannot be used here: {problem.message}"
            raise ProblemError(Kind.ENGINE, message) from error

    async def close(self) -> None:
        """Answer what was taken, and free them all."""
        for variant in await asyncio.gather(*self._loading.values(), return_exceptions=True):
            if isinstance(variant, ServedModel):
                await asyncio.to_thread(variant.close, timeout_s=self._service.settings.drain_timeout_s)

    async def _load(self, model: ServedModel, precision: Precision) -> ServedModel:
        assert model.open_variant is not None  # noqa: S101 - otherwise none but the served one is offered
        try:
            reranker = await asyncio.to_thread(model.open_variant, precision)
            variant = ServedModel(f"{model.name}:{precision}", reranker, self._service.settings)
            try:
                await warm_up(variant)
            except BaseException:
                await asyncio.to_thread(variant.close)
                raise
        except BaseException:
            del self._loading[model, precision]  # whoever asks next tries again
            raise
        self._service.metrics.watch(variant)
        return variant
