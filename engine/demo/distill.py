"""A smaller text encoder for the demo model, distilled from its T5: `python -m engine.demo.distill STAGE --work DIR`.

The student is a T5 with a projection in DistillT5's published layout ("Scaling Down Text Encoders of Text-to-Image
Diffusion Models", arXiv:2503.19897). `STAGES` are, in order: "match", where the student imitates the teacher's
embeddings; "follow", the paper's step-following, where the frozen transformer shall predict from the student's text
what it predicts from the teacher's, all along the walks that the latter leads; then `export`. `minutes` is what the
embedded weights had, on one busy CPU core. Each stage resumes from what lies in the work folder and keeps the student
that is best on held-out prompts. The schedules follow the clock, so a run repeats the recipe, not the bits.

What differs from the paper: it warns of imitation alone, which here, with 75 words, does most of the work in a
fifteenth of the time a step. It sets CLIP's pooled output to zero for both, so that the sequence must decide; here it
is the real one, because this transformer was never shown a zero (of 48 held-out prompts it paints 12 % right with it,
77 % with the real one). And its batch walks in step; here every picture is at a step of its own, so that the optimizer
does not see the same prompts four times in a row, which undid what "match" had learned.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, T5Config, T5EncoderModel

from engine.demo import scenes
from engine.demo.export import SHIFT
from engine.demo.grammar import describe
from engine.demo.optim import Average, Clock, run_stage
from engine.demo.train_text import TEXT_WIDTH, worded
from engine.demo.train_vae import LATENT_CHANNELS, SAMPLE_SIZE
from engine.demo.vocabulary import TOKEN_LIMIT, clip_tokenizer, t5_tokenizer
from engine.families.flux1.latents import image_position_ids, pack
from engine.families.flux1.parts import VAE_SCALE
from engine.sampling import flow
from engine.times import FlowTimes

WIDTH, LAYERS, HEADS, HEAD_SIZE, FEED_FORWARD = 64, 2, 4, 16, 128
STAGES: dict[str, dict[str, Any]] = {
    "match": {"minutes": 15, "batch_size": 64, "rate": 3e-3, "every": 500},
    "follow": {"minutes": 30, "batch_size": 32, "rate": 1e-4, "every": 50},
}
STEPS = (4, 4, 4, 8)  # of a trajectory: one of these
GUIDANCE = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)  # what the transformer was taught
DROPOUT = 0.05  # prompts replaced by the empty one, which true classifier-free guidance asks for
POOL, FRESH = 20_000, 4  # prompts that "match" draws from; it adds one for so many that it draws
HELD_OUT = 96  # prompts that tell the best student
STUDENT, TIED = "student.safetensors", "encoder.encoder.embed_tokens.weight"
WEIGHTS = Path(__file__).parent / "weights"
CONFIG = (
    "model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj",
    "dense_act_fn", "is_gated_act", "layer_norm_epsilon", "relative_attention_num_buckets",
    "relative_attention_max_distance", "dropout_rate", "pad_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip


class Student(nn.Module):
    """A T5 encoder and its projection; its state dict has DistillT5's names."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = t5_tokenizer()
        self.encoder: Any = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=WIDTH,
                d_kv=HEAD_SIZE,
                num_heads=HEADS,
                d_ff=FEED_FORWARD,
                num_layers=LAYERS,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                decoder_start_token_id=tokenizer.pad_token_id,
            )
        )
        self.final_projection = nn.Sequential(
            nn.Linear(WIDTH, TEXT_WIDTH, bias=False),
            nn.ReLU(),
            nn.Dropout(0.0),
            nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, S] to the sequence that the transformer reads, [B, S, TEXT_WIDTH]."""
        sequence: Tensor = self.final_projection(self.encoder(input_ids=ids).last_hidden_state)
        return sequence


class Teacher:
    """The embedded model, frozen: its text encoders and its transformer."""

    def __init__(self, weights: Path) -> None:
        self.t5 = T5EncoderModel.from_pretrained(weights / "text_encoder_2").float().eval().requires_grad_(False)
        self.clip = CLIPTextModel.from_pretrained(weights / "text_encoder").float().eval().requires_grad_(False)
        transformer = FluxTransformer2DModel.from_pretrained(weights / "transformer")
        self.transformer = transformer.float().eval().requires_grad_(False)
        self.tokenizer, self.clip_tokenizer = t5_tokenizer(), clip_tokenizer()
        self.img_ids = image_position_ids(SAMPLE_SIZE, SAMPLE_SIZE)
        self.txt_ids = torch.zeros(TOKEN_LIMIT, 3)

    def ids(self, prompts: list[str]) -> Tensor:
        return _ids(self.tokenizer, prompts)

    @torch.no_grad()
    def sequence(self, ids: Tensor) -> Tensor:
        """[B, S, TEXT_WIDTH]"""
        sequence: Tensor = self.t5(input_ids=ids).last_hidden_state
        return sequence

    @torch.no_grad()
    def pooled(self, prompts: list[str]) -> Tensor:
        """[B, TEXT_WIDTH]"""
        pooled: Tensor = self.clip(input_ids=_ids(self.clip_tokenizer, prompts)).pooler_output
        return pooled

    def velocity(self, x: Tensor, sigma: Tensor, sequence: Tensor, pooled: Tensor, guidance: Tensor) -> Tensor:
        """The transformer's prediction [B, L, C] at one flow time; gradients reach `sequence`."""
        velocity: Tensor = self.transformer(
            hidden_states=x,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=sigma.expand(len(x)),
            guidance=guidance,
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0]
        return velocity


def _ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    batch = tokenizer(prompts, padding="max_length", max_length=TOKEN_LIMIT, truncation=True, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def random_prompts(rng: np.random.Generator, count: int) -> list[str]:
    """The grammar's wordings of scenes that training may see, and now and then the empty prompt."""
    return ["" if rng.random() < DROPOUT else worded(scenes.training_scene(rng), rng) for _ in range(count)]


def random_noise(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Packed starting noise [B, L, C]."""
    side = SAMPLE_SIZE // VAE_SCALE
    return pack(torch.randn(count, LATENT_CHANNELS, side, side, generator=generator))


class Examination:
    """Held-out prompts with what the teacher predicts along their trajectories.

    `error` is the mean squared difference of a student's velocities, in parts of that of the empty prompt.
    """

    @torch.no_grad()
    def __init__(self, teacher: Teacher, count: int) -> None:
        rng = np.random.default_rng(11)
        prompts: list[str] = []
        while len(prompts) < count:
            scene = scenes.random_scene(rng)
            if scenes.held_out(scene):
                prompts.append(describe(scene, rng))
        self.teacher = teacher
        self.ids, self.pooled = teacher.ids(prompts), teacher.pooled(prompts)
        self.guidance = torch.full((count,), 3.0)
        sequence = teacher.sequence(self.ids)
        x = random_noise(count, torch.Generator().manual_seed(11))
        self.points: list[tuple[Tensor, Tensor, Tensor]] = []  # x, sigma, the teacher's velocity
        sigmas = flow.sigmas(FlowTimes(shift=SHIFT), 4, x.shape[1])
        for sigma, sigma_next in pairwise(sigmas):
            velocity = teacher.velocity(x, sigma, sequence, self.pooled, self.guidance)
            self.points.append((x, sigma, velocity))
            x = flow.euler_step(x, velocity, sigma, sigma_next)
        self.unit = self._difference(teacher.sequence(teacher.ids([""])).expand_as(sequence))

    def error(self, student: Student) -> float:
        with torch.no_grad():
            return self._difference(student(self.ids)) / self.unit

    def _difference(self, sequence: Tensor) -> float:
        differences = [
            F.mse_loss(self.teacher.velocity(x, sigma, sequence, self.pooled, self.guidance), velocity)
            for x, sigma, velocity in self.points
        ]
        return float(torch.stack(differences).mean())


class Pool:
    """Prompts that the teacher has read, to draw batches from; the latest replace the oldest."""

    def __init__(self, teacher: Teacher, limit: int) -> None:
        self.teacher, self.written = teacher, 0
        self.ids = torch.empty(limit, TOKEN_LIMIT, dtype=torch.long)
        self.sequences = torch.empty(limit, TOKEN_LIMIT, TEXT_WIDTH, dtype=torch.bfloat16)

    def add(self, rng: np.random.Generator, count: int) -> None:
        at = torch.arange(self.written, self.written + count) % len(self.ids)
        self.ids[at] = self.teacher.ids(random_prompts(rng, count))
        self.sequences[at] = self.teacher.sequence(self.ids[at]).bfloat16()
        self.written += count

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Ids [B, S] and what the teacher makes of them [B, S, TEXT_WIDTH]."""
        at = torch.from_numpy(rng.integers(min(self.written, len(self.ids)), size=count))
        return self.ids[at], self.sequences[at].float()


class Walks:
    """Pictures on their way from noise, each at a step of its own; where one arrives, another begins."""

    def __init__(self, teacher: Teacher, rng: np.random.Generator, count: int) -> None:
        self.teacher, self.rng, self.x = teacher, rng, random_noise(count)  # [B, L, C]
        self.ids = torch.empty(count, TOKEN_LIMIT, dtype=torch.long)
        self.sequence = torch.empty(count, TOKEN_LIMIT, TEXT_WIDTH)  # the teacher's
        self.pooled, self.guidance = torch.empty(count, TEXT_WIDTH), torch.empty(count)
        self.sigmas, self.at = torch.zeros(count, max(STEPS) + 1), torch.zeros(count, dtype=torch.long)
        everyone = torch.arange(count)
        self._begin(everyone, 1 + everyone.numpy() % min(STEPS))  # the first are short, so that not all arrive at once

    def velocity(self, sequence: Tensor) -> Tensor:
        """What the transformer predicts where they are, if it reads this [B, S, TEXT_WIDTH]."""
        return self.teacher.velocity(self.x, self._sigma(0), sequence, self.pooled, self.guidance)

    def advance(self, velocity: Tensor) -> None:
        sigma, sigma_next = self._sigma(0), self._sigma(1)
        self.x = flow.euler_step(self.x, velocity, sigma[:, None, None], sigma_next[:, None, None])
        self.at += 1
        arrived = torch.nonzero(sigma_next == 0)[:, 0]
        self._begin(arrived, self.rng.choice(STEPS, len(arrived)))

    def _sigma(self, ahead: int) -> Tensor:
        return self.sigmas.gather(1, self.at[:, None] + ahead)[:, 0]

    def _begin(self, who: Tensor, steps: Iterable[int]) -> None:
        if not len(who):
            return
        prompts = random_prompts(self.rng, len(who))
        self.ids[who], self.pooled[who] = self.teacher.ids(prompts), self.teacher.pooled(prompts)
        self.sequence[who] = self.teacher.sequence(self.ids[who])
        self.guidance[who] = torch.tensor(self.rng.choice(GUIDANCE, len(who)), dtype=torch.float32)
        self.x[who], self.at[who] = random_noise(len(who)), 0
        for one, count in zip(who, steps, strict=True):
            self.sigmas[one, : count + 1] = flow.sigmas(FlowTimes(shift=SHIFT), int(count), self.x.shape[1])


class Learner:
    """A student with its optimizer, its averaged weights, and in a file the best of these so far."""

    def __init__(self, file: Path, teacher: Teacher, clock: Clock, rate: float, every: int, held_out: int) -> None:
        """`every` so many steps an examination by `held_out` prompts."""
        self.file, self.clock, self.rate, self.every = file, clock, rate, every
        self.student = resumed(file)
        self.average = Average(self.student, 0.998)
        if file.exists():
            self.average.updates = 2000  # what was learned before counts
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.examination = Examination(teacher, held_out)
        self.error = self.examination.error(self.student)
        self.losses: list[float] = []
        print(f"held-out error {self.error:.5f} at the start", flush=True)

    def learn(self, loss: Tensor) -> None:
        """One step of the optimizer; every so often an examination."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * self.clock.rate(len(self.losses), self.clock.progress)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.student)
        self.losses.append(float(loss.detach()))
        if len(self.losses) % self.every == 0:
            self.examine()

    def examine(self) -> None:
        """Keep the averaged student if it is the best so far."""
        error = self.examination.error(self.average.module)
        best = error < self.error
        if best:
            self.error = error
            save(self.average.module, self.file)
        print(f"{self.clock.progress:6.1%} step {len(self.losses)} loss {np.mean(self.losses[-self.every :]):.5f} "
              f"held-out error {error:.5f}{' *' * best}", flush=True)  # fmt: skip


def match(teacher: Teacher, student: Student, rng: np.random.Generator, batch_size: int) -> Iterator[Tensor]:
    """Losses that bring the student's embeddings to the teacher's: which words mean the same, before any picture."""
    pool = Pool(teacher, POOL)
    while True:
        pool.add(rng, batch_size // FRESH)
        ids, sequence = pool.batch(rng, batch_size)
        yield F.mse_loss(student(ids), sequence)


def follow(teacher: Teacher, student: Student, rng: np.random.Generator, batch_size: int) -> Iterator[Tensor]:
    """Losses of step-following: one for every step of the walks that the teacher's text leads."""
    walks = Walks(teacher, rng, batch_size)
    while True:
        with torch.no_grad():
            velocity = walks.velocity(walks.sequence)
        yield F.mse_loss(walks.velocity(student(walks.ids)), velocity)
        walks.advance(velocity)


LESSONS = {"match": match, "follow": follow}


def train(
    work: Path, weights: Path, kind: str, minutes: float, batch_size: int, rate: float, every: int, seed: int
) -> None:
    """One of `STAGES`; resumes from, and saves, `student.safetensors` under `work`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, list(STAGES).index(kind)])
    teacher, clock = Teacher(weights), Clock(minutes, decay_from=0.2)
    learner = Learner(work / STUDENT, teacher, clock, rate, every, HELD_OUT)
    for loss in LESSONS[kind](teacher, learner.student, rng, batch_size):
        learner.learn(loss)
        if clock.progress == 1:
            break
    learner.examine()


def save(student: Student, file: Path) -> None:
    """The tensors as DistillT5 is published: the tied embedding once."""
    state = student.state_dict()
    del state[TIED]
    save_file(state, file, metadata={"format": "pt"})


def resumed(file: Path) -> Student:
    """The student in a file, in fp32, or a new one."""
    student = Student()
    if file.exists():
        left_out = student.load_state_dict(load_file(file), strict=False)
        assert left_out.missing_keys == [TIED]
        assert not left_out.unexpected_keys
    return student


def export(work: Path, target: Path) -> None:
    """Write the best student as DistillT5 is published, in bf16."""
    target.mkdir(parents=True, exist_ok=True)
    student = resumed(work / STUDENT)
    save(student.to(torch.bfloat16), target / "model.safetensors")
    kept = student.encoder.config.to_dict()
    config = {
        "architectures": ["T5EncoderWithProjection"],
        **{name: kept[name] for name in CONFIG},
        "project_in_dim": WIDTH,
        "project_out_dim": TEXT_WIDTH,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    for file in target.iterdir():
        file.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, help="instead of the stage's own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the demo model, whose T5 is the teacher")
    parser.add_argument("--target", type=Path, default=WEIGHTS / "distill_t5", help="of export")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage == "export":
        export(options.work, options.target)
        return
    settings = dict(STAGES[options.stage])
    stage_minutes = settings.pop("minutes")
    run_stage(
        train,
        1,
        work=options.work,
        weights=options.weights,
        kind=options.stage,
        minutes=options.minutes or stage_minutes,
        seed=options.seed,
        **settings,
    )


if __name__ == "__main__":
    main()
