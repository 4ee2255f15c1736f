"""The engine's words, where pages look for them."""

from engine.words import ARCHITECTURE_NAMES as ARCHITECTURE_NAMES
from engine.words import ATTACKS as ATTACKS
from engine.words import CONTROL_NAMES as CONTROL_NAMES
from engine.words import DATASET_NAMES as DATASET_NAMES
from engine.words import PROCEDURE_NAMES as PROCEDURE_NAMES
from engine.words import SETTING_NAMES as SETTING_NAMES
from engine.words import Attack as Attack
from engine.words import attack_name as attack_name
from engine.words import attack_of as attack_of
from engine.words import dataset_name as dataset_name
from engine.words import procedure_line as procedure_line
