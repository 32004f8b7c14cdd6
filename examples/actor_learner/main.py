"""Actors play CartPole, one learner chooses all their moves at once: batched `async_execution`.

Written for `torch.distributed.rpc`, and run on zrpc as it is:

    python -m zrpc.compat examples/actor_learner/main.py --actors 2 --episodes 60

Each actor asks the learner for its next move and waits. The learner answers no question until every actor has asked: then
one forward pass of the policy serves them all. The decorator `async_execution` makes that cheap: the question returns a
future at once, and no thread waits for the others. After each round of episodes the learner takes one step of REINFORCE.
Needs gymnasium (`pip install torch-zrpc[examples]`).
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import gymnasium
import torch
import torch.distributed.rpc as rpc
import torch.multiprocessing as mp
from torch import nn

LEARNER = "learner"
LONGEST = 200
DISCOUNT = 0.99


class Policy(nn.Module):
    """Four numbers of the cart's state in, two preferences out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states)


class Learner:
    """Owns the policy. Actors call `choose` and `finish` through a reference to it."""

    def __init__(self, actors: int) -> None:
        self.policy = Policy()
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=2e-2)
        self.lock = threading.Lock()
        self.playing = actors
        self.states: dict[int, torch.Tensor] = {}
        self.waiting: torch.futures.Future[dict[int, int]] = torch.futures.Future()
        self.chances: dict[int, list[torch.Tensor]] = {}
        self.rewards: dict[int, list[float]] = {}
        self.batches: list[int] = []

    def begin(self, actors: int) -> None:
        """A round of episodes begins, one for each actor."""
        self.playing = actors
        self.chances = {actor: [] for actor in range(actors)}
        self.rewards = {actor: [] for actor in range(actors)}

    @staticmethod
    @rpc.functions.async_execution
    def choose(reference: rpc.RRef, actor: int, state: torch.Tensor, reward: float | None) -> torch.futures.Future[int]:
        """The actor's next move in `state`; `reward` is what its last move brought."""
        self = reference.local_value()
        with self.lock:
            if reward is not None:
                self.rewards[actor].append(reward)
            self.states[actor] = state
            future = self.waiting.then(lambda moves, actor=actor: moves.wait()[actor])
            self.answer_when_all_have_asked()
        return future

    @staticmethod
    def finish(reference: rpc.RRef, actor: int, reward: float) -> None:
        """The actor's episode is over."""
        self = reference.local_value()
        with self.lock:
            self.rewards[actor].append(reward)
            self.playing -= 1
            self.answer_when_all_have_asked()

    def answer_when_all_have_asked(self) -> None:
        """One forward pass for all actors that still play. With the lock held."""
        if not self.states or len(self.states) < self.playing:
            return
        actors = sorted(self.states)
        chances = torch.distributions.Categorical(logits=self.policy(torch.stack([self.states[a] for a in actors])))
        moves = chances.sample()
        for row, actor in enumerate(actors):
            self.chances[actor].append(chances.log_prob(moves)[row])
        self.batches.append(len(actors))
        waiting, self.waiting, self.states = self.waiting, torch.futures.Future(), {}
        waiting.set_result(dict(zip(actors, moves.tolist(), strict=True)))

    def learn(self) -> float:
        """A step of REINFORCE over the round; returns the mean length of its episodes."""
        loss = torch.zeros(())
        for actor, rewards in self.rewards.items():
            returns, total = [], 0.0
            for reward in reversed(rewards):
                total = reward + DISCOUNT * total
                returns.insert(0, total)
            gains = torch.tensor(returns)
            gains = (gains - gains.mean()) / (gains.std() + 1e-6)
            loss = loss - (torch.stack(self.chances[actor]) * gains).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return sum(map(len, self.rewards.values())) / len(self.rewards)


class Actor:
    """Plays on its own worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.game = gymnasium.make("CartPole-v1")
        self.seed = 1000 * number

    def play(self, learner: rpc.RRef) -> None:
        """One episode."""
        self.seed += 1
        state, _ = self.game.reset(seed=self.seed)
        reward: float | None = None
        for _ in range(LONGEST):
            args = (learner, self.number, torch.from_numpy(state), reward)
            move = rpc.rpc_sync(learner.owner(), Learner.choose, args=args)
            state, gained, is_over, _, _ = self.game.step(move)
            reward = float(gained)
            if is_over:
                break
        rpc.rpc_sync(learner.owner(), Learner.finish, args=(learner, self.number, reward or 0.0))


def train(actors: int, rounds: int) -> None:
    """On the learner: rounds of episodes, played by all the actors at the same time."""
    torch.manual_seed(0)
    learner = rpc.RRef(Learner(actors))
    players = [rpc.remote(f"actor{number}", Actor, args=(number,)) for number in range(actors)]
    average = None
    for number in range(1, rounds + 1):
        learner.local_value().begin(actors)
        for future in [player.rpc_async().play(learner) for player in players]:
            future.wait()
        length = learner.local_value().learn()
        average = length if average is None else 0.9 * average + 0.1 * length
        if number % 10 == 0:
            print(f"round {number}: episodes of {length:.0f} moves, {average:.0f} on average", flush=True)
    batches = learner.local_value().batches
    print(f"{sum(batches)} moves in {len(batches)} forward passes; {average:.1f} moves on average", flush=True)


def run(rank: int, actors: int, rounds: int, port: int) -> None:
    """One process: rank 0 learns, the others play."""
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    rpc.init_rpc(LEARNER if rank == 0 else f"actor{rank - 1}", rank=rank, world_size=actors + 1)
    if rank == 0:
        train(actors, rounds)
    rpc.shutdown()


def free_port() -> int:
    """A port for the processes to meet at."""
    with socket.socket() as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn to balance a pole, with actors that ask one learner.")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=60, help="episodes for each actor")
    given = parser.parse_args()
    mp.spawn(run, args=(given.actors, given.episodes, free_port()), nprocs=given.actors + 1)


if __name__ == "__main__":
    main()
