"""vLLM's worker, which also averages the hidden states of every answer while it is sampled.

vLLM imports this module by name (worker_cls). Beside the public worker_cls, additional_config and
collective_rpc it relies on these private parts of vLLM; vllm_sampler.py checks that the version is
the one that they were seen in, before it has this module imported:

    model.set_aux_hidden_state_layers(layers)       side outputs made for EAGLE-3: entry l is what
                                                    goes into layer l, so the output of layer l - 1
    model_runner.use_aux_hidden_state_outputs       makes the forward pass return them
    model_runner.execute_model_state                a step's states between forward and sampling
    model_runner.input_batch, scheduler_output      runner V1: which tokens those are
    execute_model_state.input_batch, req_states     runner V2: the same
    model_runner.discard_request_mask               runner V1: prompts that a step leaves unfinished
    v1.engine.detokenizer                           in vllm_sampler.py: the text of an answer
                                                    without its surplus token
    request ids                                     "R-xxxxxxxx", and "k_R-xxxxxxxx" for answer k

The state of a token exists once the token is fed to the model, and the last one sampled is never
fed (with asynchronous scheduling sometimes it is). The sampler therefore asks for a token more than
it keeps, drops the last one of every answer, and checks the count of states against the tokens it
keeps.

Shapes: T tokens of a step, W windows of layers, H hidden, A answers.
"""

import re
from collections import deque
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.platforms import current_platform

from adg.base.errors import InputError
from adg.models.vllm_options import check_version

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as VllmWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as VllmWorker

WINDOWS = "adg_windows"  # key of additional_config: lists of layers, counted from 0
_ADVICE = "use embedding.source=forward"
_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


def check_engine(config: Any) -> None:
    """InputError where this vLLM, or its configuration, is not what this module relies on."""
    check_version(vllm.__version__)
    if config.parallel_config.pipeline_parallel_size > 1:
        raise InputError(f"embedding.source=sampling does not go with pipeline parallelism, where "
                         f"no process sees all layers: {_ADVICE}")
    if config.speculative_config is not None:
        raise InputError(f"embedding.source=sampling does not go with speculative decoding, which "
                         f"uses the same side outputs: {_ADVICE}")


def check_model(kind: type) -> None:
    """InputError where a class of models does not expose the states of its layers."""
    if not supports_eagle3(kind):
        raise InputError(f"model.name_or_path: vLLM's {kind.__name__} does not expose the "
                         f"hidden states of its layers while it samples: {_ADVICE}")


def check_before_start(folder: str, settings: dict[str, Any]) -> None:
    """InputError for what the workers would refuse, before they are started."""
    config = EngineArgs(model=folder, **settings).create_model_config()
    check_model(ModelRegistry.resolve_model_cls(config.architectures, config)[0])


class AnswerWorker(VllmWorker):
    """Keeps, for each answer in the making, sums of its states over the windows' layers."""

    def load_model(self, **options: Any) -> None:
        check_engine(self.vllm_config)
        super().load_model(**options)
        runner, model = self.model_runner, self.model_runner.get_model()
        self._windows: list[list[int]] = self.vllm_config.additional_config[WINDOWS]
        self._last = self.model_config.get_total_num_hidden_layers() - 1
        self._side_layers = sorted({layer for window in self._windows for layer in window
                                    if layer != self._last})
        if self._side_layers:
            model.set_aux_hidden_state_layers(tuple(layer + 1 for layer in self._side_layers))
            runner.use_aux_hidden_state_outputs = True
        self.sums = StateSums(len(self._windows), self.model_config.get_hidden_size(), self.device)

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.rank == 0 and self.model_runner.execute_model_state is not None:
            self._add_states()
        with self._unfinished_prompts_draw_nothing():
            return super().sample_tokens(grammar_output)

    def forget_answers(self) -> None:
        """Drop what the engine's warm-up left."""
        self.sums.clear()

    def fetch_answers(self, names: list[str], kept: list[int]) -> tuple[list[int], bytes]:
        """(states seen of each answer, their means float32 [A, W, H] as bytes, which also another
        process can be sent); the answers are forgotten.

        Where one state more was seen than tokens are `kept`, the last one is taken off.
        """
        counts, means = self.sums.take(names, kept)
        return counts, means.tobytes()

    def _add_states(self) -> None:
        state = self.model_runner.execute_model_state
        layers = dict(zip(self._side_layers, state.aux_hidden_states or (), strict=True))
        layers[self._last] = state.hidden_states

        def mean_of(places: torch.Tensor) -> torch.Tensor:
            picked = {layer: layers[layer][places].float()
                      for layer in {layer for window in self._windows for layer in window}}
            return torch.stack([sum(picked[layer] for layer in window) / len(window)
                                for window in self._windows], dim=1)                 # [T, W, H]

        self.sums.add(_batch_of(self.model_runner), mean_of)

    @contextmanager
    def _unfinished_prompts_draw_nothing(self) -> Any:
        """On a CPU: hide the random generators of prompts that a step leaves unfinished.

        vLLM draws for them too and then rewinds, which a CPU's generators cannot.
        """
        runner = self.model_runner
        if not current_platform.is_cpu() or runner.execute_model_state is None:
            yield
            return
        unfinished = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0]
        generators = runner.input_batch.generators
        hidden = {int(i): generators.pop(int(i)) for i in unfinished if int(i) in generators}
        yield
        generators.update(hidden)


class StepBatch(NamedTuple):
    """The requests of a step, in the order in which their tokens stand in it."""

    names: list[str]
    num_scheduled: list[int]  # tokens of each in this step
    num_computed: list[int]  # tokens of each that were computed before
    prompt_lengths: list[int]


def _batch_of(runner: Any) -> StepBatch:
    state = runner.execute_model_state
    if hasattr(state, "input_batch"):  # runner V2
        batch = state.input_batch
        lengths = runner.req_states.prompt_len.np[batch.idx_mapping_np]
        ids, scheduled = batch.req_ids, batch.num_scheduled_tokens.tolist()
        computed = batch.num_computed_tokens_np.tolist()
    else:
        batch = runner.input_batch
        ids = batch.req_ids
        lengths = batch.num_prompt_tokens[: len(ids)]
        scheduled = [state.scheduler_output.num_scheduled_tokens[name] for name in ids]
        computed = batch.num_computed_tokens_cpu[: len(ids)].tolist()
    return StepBatch([_SUFFIX.sub("", name) for name in ids], scheduled, computed,
                     lengths.tolist())


class StateSums:
    """For each answer: how many of its tokens were fed, the sum of their states, the last state."""

    def __init__(self, num_windows: int, width: int, device: Any) -> None:
        self._device = device
        self._slots: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._free: list[int] = []
        # Of the last fetches: with asynchronous scheduling a token of theirs may be fed after them
        self._taken: deque[set[str]] = deque(maxlen=4)
        self._sums = torch.zeros(0, num_windows, width, device=device)
        self._last = torch.zeros(0, num_windows, width, device=device)

    def clear(self) -> None:
        """Forget everything."""
        self._free += self._slots.values()
        self._slots.clear()
        self._counts.clear()

    def add(self, batch: StepBatch, mean_of: Any) -> None:
        """Add a step's states of answer tokens that were not seen before.

        `mean_of` gives the states [T, W, H] at given places of the step. A preempted answer is fed
        again from its start, and its tokens are not counted twice.
        """
        places, slots, ends, ended = [], [], [], []
        start = 0
        for name, scheduled, computed, prompt in zip(*batch, strict=True):
            due = prompt + self._counts.get(name, 0)  # the position of the next state to be seen
            first = max(due - computed, 0)
            late = name not in self._counts and any(name in names for names in self._taken)
            if first < scheduled and computed + first == due and not late:
                slot = self._slots[name] if name in self._slots else self._new_slot(name)
                number = scheduled - first
                places += range(start + first, start + scheduled)
                slots += [slot] * number
                ends.append(len(places) - 1)
                ended.append(slot)
                self._counts[name] = self._counts.get(name, 0) + number
            start += scheduled
        if places:
            states = mean_of(self._on_device(places))
            self._sums.index_add_(0, self._on_device(slots), states)
            self._last[self._on_device(ended)] = states[self._on_device(ends)]

    def take(self, names: list[str], kept: list[int]) -> tuple[list[int], Any]:
        """As AnswerWorker.fetch_answers, the means as an array; NaN for an answer without a token.
        """
        counts = [self._counts.pop(name, 0) for name in names]
        surplus = [count == wanted + 1 for count, wanted in zip(counts, kept, strict=True)]
        slots = [self._slots.pop(name, None) for name in names]
        self._taken.append(set(names))
        self._free += [slot for slot in slots if slot is not None]
        counts = [count - more for count, more in zip(counts, surplus, strict=True)]
        seen = [number for number, count in enumerate(counts) if count]
        means = torch.full((len(names), *self._sums.shape[1:]), torch.nan)
        if seen:
            rows = self._on_device([slots[number] for number in seen])
            over, total = (self._on_device([values[number] for number in seen]).view(-1, 1, 1)
                           for values in (surplus, counts))
            means[seen] = ((self._sums[rows] - self._last[rows] * over) / total).cpu()
        return counts, means.numpy()

    def _new_slot(self, name: str) -> int:
        if not self._free:
            size = len(self._sums)
            more = torch.zeros(max(size, 64), *self._sums.shape[1:], device=self._device)
            self._sums, self._last = (torch.cat([states, more])
                                      for states in (self._sums, self._last))
            self._free = list(range(size, len(self._sums)))
        slot = self._slots[name] = self._free.pop()
        self._sums[slot] = 0.0
        return slot

    def _on_device(self, values: list[int]) -> torch.Tensor:
        on_gpu = self._device.type == "cuda"
        return torch.tensor(values, pin_memory=on_gpu).to(self._device, non_blocking=True)
