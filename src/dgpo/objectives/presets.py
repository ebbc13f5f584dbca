"""Presets: papers that combine an objective, an aggregation and an advantage, without a weight of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpo.objectives.paper import Paper, names
from dgpo.registry import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A combination, by the names that a configuration accepts.

    Attributes:
        objective: name of an objective.
        objective_kwargs: its fields, where they differ from the defaults.
        aggregation: name of an aggregation; a length that is needed and not given is the completion budget.
        aggregation_kwargs: its fields, where they differ from the defaults.
        advantage: name of an advantage.
        paper: the one that combines them.
    """

    objective: str
    objective_kwargs: Mapping[str, Any] = field(default_factory=dict)
    aggregation: str
    aggregation_kwargs: Mapping[str, Any] = field(default_factory=dict)
    advantage: str
    paper: Paper


PRESETS: dict[str, Preset] = {
    # the paper's dynamic sampling and soft overlong reward are options of the trainer and of the reward
    "dapo": Preset(
        objective="grpo",
        objective_kwargs={"eps_low": 0.2, "eps_high": 0.28},
        aggregation="token-mean",
        advantage="std",
        paper=Paper(
            arxiv_id="2503.14476",
            title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
            authors=names(
                "Qiying Yu, Zheng Zhang, Ruofei Zhu, Yufeng Yuan, Xiaochen Zuo, Yu Yue, Tiantian Fan, Gaohong Liu, "
                "Lingjun Liu, Xin Liu, Haibin Lin, Zhiqi Lin, Bole Ma, Guangming Sheng, Yuxuan Tong, Chi Zhang, "
                "Mofan Zhang, Wang Zhang, Hang Zhu, Jinhua Zhu, Jiaze Chen, Jiangjie Chen, Chengyi Wang, Hongli Yu, "
                "Weinan Dai, Yuxuan Song, Xiangpeng Wei, Hao Zhou, Jingjing Liu, Wei-Ying Ma, Ya-Qin Zhang, Lin Yan, "
                "Mu Qiao, Yonghui Wu, Mingxuan Wang"
            ),
            year=2025,
            code="https://github.com/BytedTsinghua-SIA/DAPO",
        ),
    ),
    "dr_grpo": Preset(
        objective="grpo",
        aggregation="seq-mean-token-sum-norm",
        advantage="none",
        paper=Paper(
            arxiv_id="2503.20783",
            title="Understanding R1-Zero-Like Training: A Critical Perspective",
            authors=names(
                "Zichen Liu, Changyu Chen, Wenjun Li, Penghui Qi, Tianyu Pang, Chao Du, Wee Sun Lee, Min Lin"
            ),
            year=2025,
            code="https://github.com/sail-sg/understand-r1-zero",
        ),
    ),
    # GSPO, every response times its length: with c = 1/B per token, the weight s stays
    "luspo": Preset(
        objective="gspo",
        objective_kwargs={"eps_low": 2e-3, "eps_high": 2.5e-3},
        aggregation="seq-mean-token-sum-norm",
        aggregation_kwargs={"length": 1},
        advantage="std",
        paper=Paper(
            arxiv_id="2602.05261",
            title=(
                "Length-Unbiased Sequence Policy Optimization: Revealing and Controlling Response Length Variation in "
                "RLVR"
            ),
            authors=names("Fanfan Liu, Youyang Yin, Peng Shi, Siqi Yang, Zhixiong Zeng, Haibo Qiu"),
            year=2026,
            code="https://github.com/murphy4122/LUSPO",
        ),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name. Raises ValueError, with the nearest known name, if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
