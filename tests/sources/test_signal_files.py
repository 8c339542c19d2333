"""What a user says of files of jets reaches their readers."""

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.signal_files import SIGNAL_FILES

TAKES = {"features": ("pt_gev", "eta_rel", "phi_rel")}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_collections_and_cuts_of_events(collider, tmp_path):
    collider.write_pfnano(tmp_path / "n.root", collider.events)
    said = {"collection": "FatJet", "min_pt_gev": 60.0, "layout": "pfnano"}
    jets = list(SIGNAL_FILES["jets"].reading(said).read(tmp_path / "n.root", TAKES))
    pt = np.concatenate([event.sums()["pt"] for event in collider.events])
    assert len(jets) == np.sum(pt / (1 - collider.CORRECTION) >= 60)
    with pytest.raises(UserError, match="jets of Jet, FatJet"):
        list(SIGNAL_FILES["jets"].read(tmp_path / "n.root", TAKES))
