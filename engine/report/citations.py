"""Whose work a run rests on, as BibTeX: of its data, network, training, attack and certificates; and this program."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.config import Config, lower_level
from engine.records import Run

WHERE = {"inproceedings": "booktitle", "article": "journal", "techreport": "institution", "misc": "howpublished"}


@dataclass(frozen=True)
class Work:
    key: str
    authors: str  # Given Family and Given Family …
    title: str
    where: str
    year: int
    arxiv: str = ""
    kind: str = "inproceedings"  # one of WHERE, which says what `where` is

    def in_words(self) -> str:
        arxiv = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors.replace(' and ', ', ')}: {self.title.rstrip('.')}. {self.where}, {self.year}{arxiv}"

    def bibtex(self) -> str:
        fields = {"title": f"{{{self.title}}}", "author": self.authors, WHERE[self.kind]: self.where, "year": self.year}
        return _entry(
            self.kind, self.key, fields | ({"eprint": self.arxiv, "archiveprefix": "arXiv"} if self.arxiv else {})
        )


_NEURIPS, _ICML = "Advances in Neural Information Processing Systems", "International Conference on Machine Learning"
_ICLR = "International Conference on Learning Representations"
_AISTATS = "International Conference on Artificial Intelligence and Statistics"
_CVPR = "IEEE/CVF Conference on Computer Vision and Pattern Recognition"

PACD = Work(
    "mehra2021robust",
    "Akshay Mehra and Bhavya Kailkhura and Pin-Yu Chen and Jihun Hamm",
    "How Robust are Randomized Smoothing based Defenses to Data Poisoning?",
    _CVPR,
    2021,
    "2012.01274",
)
SMOOTHING = Work(
    "cohen2019certified",
    "Jeremy Cohen and Elan Rosenfeld and J. Zico Kolter",
    "Certified Adversarial Robustness via Randomized Smoothing",
    _ICML,
    2019,
    "1902.02918",
)
SMOOTHADV = Work(
    "salman2019provably",
    "Hadi Salman and Jerry Li and Ilya Razenshteyn and Pengchuan Zhang and Huan Zhang and Sébastien Bubeck and "
    "Greg Yang",
    "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers",
    _NEURIPS,
    2019,
    "1906.04584",
)
MACER = Work(
    "zhai2020macer",
    "Runtian Zhai and Chen Dan and Di He and Huan Zhang and Boqing Gong and Pradeep Ravikumar and Cho-Jui Hsieh and "
    "Liwei Wang",
    "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius",
    _ICLR,
    2020,
    "2001.02378",
)
CONSISTENCY = Work(
    "jeong2020consistency",
    "Jongheon Jeong and Jinwoo Shin",
    "Consistency Regularization for Certified Robustness of Smoothed Classifiers",
    _NEURIPS,
    2020,
    "2006.04062",
)
SMOOTHMIX = Work(
    "jeong2021smoothmix",
    "Jongheon Jeong and Sejun Park and Minkyu Kim and Heung-Chang Lee and Do-Guk Kim and Jinwoo Shin",
    "SmoothMix: Training Confidence-calibrated Smoothed Classifiers for Certified Robustness",
    _NEURIPS,
    2021,
    "2111.09277",
)
UNLEARNABLE = Work(
    "huang2021unlearnable",
    "Hanxun Huang and Xingjun Ma and Sarah Monazam Erfani and James Bailey and Yisen Wang",
    "Unlearnable Examples: Making Personal Data Unexploitable",
    _ICLR,
    2021,
    "2101.04898",
)
SHORTCUTS = Work(
    "yu2022availability",
    "Da Yu and Huishuai Zhang and Wei Chen and Jian Yin and Tie-Yan Liu",
    "Availability Attacks Create Shortcuts",
    "ACM SIGKDD Conference on Knowledge Discovery and Data Mining",
    2022,
    "2111.00898",
)
STRONG_POISONS = Work(
    "fowl2021adversarial",
    "Liam Fowl and Micah Goldblum and Ping-yeh Chiang and Jonas Geiping and Wojciech Czaja and Tom Goldstein",
    "Adversarial Examples Make Strong Poisons",
    _NEURIPS,
    2021,
    "2106.10807",
)
GRADIENT_MATCHING = Work(
    "geiping2021witches",
    "Jonas Geiping and Liam Fowl and W. Ronny Huang and Wojciech Czaja and Gavin Taylor and Michael Moeller and "
    "Tom Goldstein",
    "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching",
    _ICLR,
    2021,
    "2009.02276",
)
POISON_FROGS = Work(
    "shafahi2018poison",
    "Ali Shafahi and W. Ronny Huang and Mahyar Najibi and Octavian Suciu and Christoph Studer and Tudor Dumitras and "
    "Tom Goldstein",
    "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks",
    _NEURIPS,
    2018,
    "1804.00792",
)
SQUEEZING = Work(
    "xu2018feature",
    "Weilin Xu and David Evans and Yanjun Qi",
    "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
    "Network and Distributed System Security Symposium",
    2018,
    "1704.01155",
)
UNROLLED = Work(
    "shaban2019truncated",
    "Amirreza Shaban and Ching-An Cheng and Nathan Hatch and Byron Boots",
    "Truncated Back-propagation for Bilevel Optimization",
    _AISTATS,
    2019,
    "1810.10667",
)
PENALTY = Work(
    "mehra2021penalty",
    "Akshay Mehra and Jihun Hamm",
    "Penalty Method for Inversion-Free Deep Bilevel Optimization",
    "Asian Conference on Machine Learning",
    2021,
    "1911.03432",
)
NEUMANN = Work(
    "lorraine2020optimizing",
    "Jonathan Lorraine and Paul Vicol and David Duvenaud",
    "Optimizing Millions of Hyperparameters by Implicit Differentiation",
    _AISTATS,
    2020,
    "1911.02590",
)
NYSTROM = Work(
    "hataya2023nystrom",
    "Ryuichiro Hataya and Makoto Yamada",
    "Nyström Method for Accurate and Scalable Implicit Differentiation",
    _AISTATS,
    2023,
    "2302.09726",
)
RESNET = Work(
    "he2016deep",
    "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
    "Deep Residual Learning for Image Recognition",
    _CVPR,
    2016,
    "1512.03385",
)
MNIST = Work(
    "lecun1998gradient",
    "Yann LeCun and Léon Bottou and Yoshua Bengio and Patrick Haffner",
    "Gradient-Based Learning Applied to Document Recognition",
    "Proceedings of the IEEE",
    1998,
    kind="article",
)
CIFAR10 = Work(
    "krizhevsky2009learning",
    "Alex Krizhevsky",
    "Learning Multiple Layers of Features from Tiny Images",
    "University of Toronto",
    2009,
    kind="techreport",
)
DIGITS = Work(
    "alpaydin1998optical",
    "Ethem Alpaydin and Cenk Kaynak",
    "Optical Recognition of Handwritten Digits",
    "UCI Machine Learning Repository",
    1998,
    kind="misc",
)

# By the code names of a configuration; what is not named rests on nobody's in particular.
OF_DATA = {"mnist": (MNIST,), "cifar10": (CIFAR10,), "digits": (DIGITS,)}
OF_PROCEDURE = {
    "gaussian": (SMOOTHING,),
    "smoothadv": (SMOOTHADV,),
    "smoothadv-pacd": (SMOOTHADV, PACD),
    "macer": (MACER,),
    "macer-pacd": (MACER, PACD),
    "consistency": (CONSISTENCY,),
    "smoothmix": (SMOOTHMIX,),
}
OF_ATTACK = {
    "pacd": (PACD, MACER),  # whose soft radius it lowers
    "universal": (PACD, MACER),
    "watermark": (POISON_FROGS,),
    "white-pattern": (UNLEARNABLE,),
    "low-frequency-pattern": (UNLEARNABLE, SHORTCUTS),
    "error-minimising": (UNLEARNABLE,),
    "error-maximising": (STRONG_POISONS,),
    "gradient-matching": (GRADIENT_MATCHING, MACER),
}
OF_SOLVER = {"unrolled": (UNROLLED,), "penalty": (PENALTY,), "neumann": (NEUMANN,), "nystrom": (NYSTROM,)}


def works(config: Config) -> list[Work]:
    """The paper that the program is about, that of certification, and those of all else that the configuration uses."""
    return list(dict.fromkeys((PACD, SMOOTHING, *_used(config))))


def of_run(run: Run) -> str:
    """The same as entries of a BibTeX file, this program last, with the commit that computed the run."""
    own = {"title": "{PACD Lab}: poison, retrain, certify"}
    if commit := run.environment.get("commit"):
        own["note"] = f"run {run.id}, commit {commit}"
    return "\n".join([*(work.bibtex() for work in works(run.config)), _entry("software", "pacdlab", own)])


def _entry(kind: str, key: str, fields: Mapping[str, object]) -> str:
    return f"@{kind}{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}\n"


def _used(config: Config) -> Iterator[Work]:
    attack, architectures = config.attack, [config.architecture]
    yield from OF_DATA.get(config.dataset, ())
    yield from OF_PROCEDURE.get(config.procedure.name, ())
    yield from OF_ATTACK.get(attack.name, ())
    if attack.traits.surrogates:
        architectures.append(attack.surrogate)
        yield from OF_PROCEDURE.get(lower_level(config)[0].name, ())
    if attack.traits.bilevel:
        yield from OF_SOLVER.get(attack.linear_solver, ())
    if any(name.startswith("resnet") for name in architectures):
        yield RESNET
    if config.training.squeezing != "none":
        yield SQUEEZING
