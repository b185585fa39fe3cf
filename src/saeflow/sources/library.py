"""DictionarySet: the dictionaries of a release or a folder, as a lazy mapping from Site.

The rest of saeflow works on such sets. Opening a set reads a list of sites; `set[site]` reads the header of a file,
from the hub where necessary; a tensor is read when it is used. Releases are data, in `releases/*.toml` (see
`saeflow.sources.releases`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from saeflow.engines import device_of_worker
from saeflow.errors import BadFile, InvalidArgument, UnknownRelease, UnknownSite, nearest
from saeflow.files import folder_and_pattern, pack_folder, pack_names
from saeflow.ids import Part, Site, SiteLike, layers_by_part
from saeflow.plain_types import as_html
from saeflow.sources.architectures import View
from saeflow.sources.devices import known_device
from saeflow.sources.dictionary import Dictionary, prepend_bos_of
from saeflow.sources.formats import discover, left_out_sentence, load
from saeflow.sources.formats.sae_lens_writer import trained_on
from saeflow.sources.formats.saeflow_folder import MANIFEST, read_manifest
from saeflow.sources.hub import CacheState, cache_state, open_entry
from saeflow.sources.releases import ReleaseEntry, is_release, known_releases, read_release

SAE_LENS: Final = "sae-lens:"
"""The prefix of names that go to sae-lens's own loader."""


if TYPE_CHECKING:
    import pandas as pd

    _Sites = Mapping[Site, Dictionary]
else:
    # not subscripted at run time: run-time type checks of an instance would open a dictionary
    _Sites = Mapping


class DictionarySet(_Sites):
    """Dictionaries by site, opened at first use and kept; `unload` of a Dictionary frees its tensors.

    Attributes:
        name: the release's name, or the folder's.
        model: the model the dictionaries were trained on, by its name on the hub; empty where nothing states it.
        left_out: folders (relative to the one opened) of SAEs that are not among the sites, each with the reason.
    """

    def __init__(
        self,
        name: str,
        model: str,
        openers: Mapping[Site, Callable[[], Dictionary]],
        *,
        device: torch.device | str = "cpu",
        hub: Mapping[Site, ReleaseEntry] | None = None,
        opened_by: str = "",
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """`openers` holds, for each site, the function that makes its dictionary when it is first needed.

        `hub` says where the files of a site are fetched from, for sites on a hub. `opened_by` is the name by which
        `load_dictionaries` opens the same set; without it, the set cannot be sent to another process.
        """
        self.name, self.model, self.left_out = name, model, dict(left_out or {})
        self._openers = dict(sorted(openers.items()))
        # "meta" is for reading shapes only; known_device would refuse it, since nothing computes there
        self._device = torch.device("meta") if str(device) == "meta" else known_device(device)
        self._hub, self._opened_by = dict(hub or {}), opened_by
        self._open: dict[Site, Dictionary] = {}

    @cached_property
    def prepend_bos(self) -> bool | None:
        """Whether the training texts began with the begin-of-text token; None if no file states it.

        Opens dictionaries until one states it.
        """
        return prepend_bos_of(self)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that has a dictionary, in order of computation."""
        return tuple(self._openers)

    def only_sites(self, sites: Collection[Site]) -> DictionarySet:
        """The set restricted to some sites; opens nothing. Sites without a dictionary are ignored."""
        openers = {site: opener for site, opener in self._openers.items() if site in sites}
        return DictionarySet(
            self.name,
            self.model,
            openers,
            device=self._device,
            hub=self._hub,
            opened_by=self._opened_by,
            left_out=self.left_out,
        )

    def only(self, parts: Collection[Part]) -> DictionarySet:
        """The set restricted to some parts; opens nothing.

        Raises:
            UnknownSite: when no dictionary belongs to any of these parts.
        """
        kept = self.only_sites([site for site in self._openers if site.part in parts])
        if not kept.sites:
            named = ", ".join(part.value for part in parts) or "no part"
            raise UnknownSite(
                f"{self.name} has no dictionary of {named}. It has {layers_by_part(self.sites)}."
                f"{left_out_sentence(self.left_out)}"
            )
        return kept

    def to_fetch(self, site: Site) -> str | None:
        """The file on a hub that opening `site` would request; None if it, or its header, is on this machine."""
        entry = self._hub.get(site)
        if entry is None or cache_state(entry) is not CacheState.NO:
            return None
        return f"{entry.repo}/{entry.files[0]}"

    def __getitem__(self, site: SiteLike) -> Dictionary:
        """The dictionary at `site`, the same object each time; `dictionaries["24/res"]`.

        Raises:
            InvalidId: when `site` is not the name of a site.
            UnknownSite: when it has no dictionary; the message lists the sites that do, and what was left out.
            InvalidArgument: when several SAEs of the folder are at this site; the message says how to choose.
            Unreachable: when its file must be fetched and cannot be.
            BadFile: when its file is bad.
        """
        site = Site.of(site)
        if site not in self._openers:
            raise UnknownSite(
                f"{self.name} has no dictionary at {site}. It has {layers_by_part(self.sites)}."
                f"{left_out_sentence(self.left_out)}"
            )
        if site not in self._open:
            made = self._openers[site]()
            self._open[site] = made if self._device.type == "cpu" else made.to(self._device)
        return self._open[site]

    def __contains__(self, site: object) -> bool:
        """Whether there is a dictionary at `site`, a Site or its name; opens nothing."""
        return site in self._openers or (isinstance(site, str) and site in map(str, self._openers))

    def __iter__(self) -> Iterator[Site]:
        """Sites in order of computation; opens nothing."""
        return iter(self._openers)

    def __len__(self) -> int:
        """How many sites there are."""
        return len(self._openers)

    def __reduce__(self) -> tuple[Callable[..., DictionarySet], tuple[object, ...]]:
        """Pickle the set as the name that opens it, never its tensors.

        Raises:
            InvalidArgument: when no name opens it.
        """
        if not self._opened_by:
            raise InvalidArgument(
                f"the dictionaries {self.name!r} were put together in memory, and another process cannot open them by "
                "name. Save them with save_release and open the folder with load_dictionaries, or take the engine "
                "here."
            )
        return _open_in_worker, (self._opened_by, str(self._device), self.sites)

    _repr_html_ = as_html

    def to_pandas(self) -> pd.DataFrame:
        """One row per dictionary: site, layer, part; features and width of those already open. Opens nothing."""
        import pandas as pd

        rows = [
            (str(site), site.layer, site.part.value, *((one.n_features, one.d_in) if one else (None, None)))
            for site in self.sites
            for one in [self._open.get(site)]
        ]
        return pd.DataFrame(rows, columns=["site", "layer", "part", "features", "width"]).convert_dtypes()

    def __repr__(self) -> str:
        """Name, model, sites and how much was left out; opens nothing."""
        more = f", {len(self.left_out)} left out" if self.left_out else ""
        return f"DictionarySet({self.name!r}, model {self.model!r}, {layers_by_part(self.sites)}{more})"


def load_dictionaries(
    release_or_folder: str | Path, *, pattern: str = "", device: torch.device | str = "cpu"
) -> DictionarySet:
    """The dictionaries of a pack ("demo", "smollm2-135m"), of a folder, or of a named release on a hub.

    A folder is one that saeflow wrote, or a tree with files of any format that `saeflow.sources.formats` reads. SAEs
    that are damaged or at no site of saeflow are left out (see `DictionarySet.left_out`). Where several SAEs are at one
    site, `pattern` selects by the path of their folders, with shell wildcards, whole or from the end:
    `load_dictionaries("saes", pattern="trainer_1")`, or in one word, as on the command line, "saes@trainer_1".

    A release is one of `known_releases`, with parameters after an @ (`gemma-scope-2b@width=65k,l0=50`), or your own
    .toml file. Each tensor of a file on a hub is fetched when it is first read, so that matching fetches only `W_dec`;
    fetched bytes are kept in the cache of huggingface_hub. Files that do not allow this, and all files if
    SAEFLOW_WHOLE_FILES is set in the environment, are fetched whole. With HF_HUB_OFFLINE=1 nothing is fetched.
    "sae-lens:RELEASE" is any release of sae-lens, through that optional package's own loader.

    Raises:
        UnknownRelease: when the argument is none of these; the message suggests a similar name, if any.
        InvalidArgument: for an unknown parameter of a release, a value without files, a pattern that fits
            nothing, or a device that this machine lacks.
        MissingExtra: for "sae-lens:..." when sae-lens is not installed.
        UnsupportedFormat: when a folder holds nothing of a known format.
        BadFile: when a file is bad, or a pack is missing from the installation.
    """
    name = f"{release_or_folder}@{pattern}" if pattern else str(release_or_folder)
    path, chosen = (str(release_or_folder), pattern) if pattern else folder_and_pattern(name)
    pack = None if chosen else pack_folder(path)
    folder = Path(path) if pack is None else pack / "saes"
    if pack is not None and not (folder / MANIFEST).is_file():
        raise BadFile(
            f"The {path} pack is missing: {folder / MANIFEST} does not exist. Install saeflow again from a wheel, or "
            "build the pack with scripts/build_demo.py."
        )
    if pack is not None or (folder.exists() and not path.endswith(".toml")):
        found = discover(folder, chosen)
        suffix = f"@{chosen}" if chosen else ""
        set_name, model = folder.absolute().name, ""
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            set_name, model = manifest.name, manifest.model
        else:
            model = trained_on(folder)
        opened_by = f"{folder.absolute()}{suffix}" if pack is None else name
        return DictionarySet(
            set_name + suffix, model, found.openers, device=device, opened_by=opened_by, left_out=found.left_out
        )
    if is_release(name):
        release = read_release(name)
        openers = {site: partial(_open_from_hub, site, entry) for site, entry in release.sites.items()}
        # a .toml file by its absolute path: another process may run in another folder
        opened_by = str(Path(name).absolute()) if Path(name).is_file() else name
        return DictionarySet(
            release.name, release.model, openers, device=device, hub=release.sites, opened_by=opened_by
        )
    if name.startswith(SAE_LENS):
        from saeflow.sources.sae_lens_release import sae_lens_openers

        openers, model, left_out = sae_lens_openers(name.removeprefix(SAE_LENS))
        return DictionarySet(name, model, openers, device=device, opened_by=name, left_out=left_out)
    raise UnknownRelease(
        f"{name!r} is neither a release nor a path that exists.{nearest(name, (*pack_names(), *known_releases()))} "
        "`saeflow releases` lists the releases. A path may be a folder of dictionaries in any supported format; "
        "sae-lens:RELEASE is any release of sae-lens."
    )


@lru_cache(maxsize=2)
def _open_in_worker(name: str, device: str, sites: tuple[Site, ...]) -> DictionarySet:
    """The same set in a worker process, opened once for all its tasks."""
    whole = load_dictionaries(name, device=device_of_worker(device))
    missing = [site for site in sites if site not in whole]
    if missing:
        raise UnknownSite(
            f"{name} has no dictionary at {missing[0]} here, and has it where the run was started. Every machine "
            "needs the same files."
        )
    return whole.only_sites(sites)


def _open_from_hub(site: Site, entry: ReleaseEntry) -> Dictionary:
    path = open_entry(entry)
    found = load(path, site)
    if not isinstance(found, Dictionary):
        raise BadFile(f"{path} holds several dictionaries, expected the one at {site}. Fetch the release again.")
    if entry.added or found.training.view is View.PROCESSED:
        # `added`: the module's output is added to the stream as it is. PROCESSED: the recipe states the centring
        found = found.with_training(replace(found.training, view=View.OWN))
    return found.centred() if entry.center else found
