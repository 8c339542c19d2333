"""Drug-like molecules: some well-known drugs, and others put together from fragments by a seed.

Fragments are those that medicinal chemistry joins most: aromatic and saturated rings, amides,
ethers, sulphonamides, small substituents. What is drawn is kept where it meets the rules of
Lipinski et al. 1997 and of Veber et al. 2002.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmtok.io.molecules import as_molecule

# Names and SMILES are facts of chemistry; stereo centres as the drug has them.
DRUGS = {
    "acetylsalicylic acid": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "ibuprofen": "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "naproxen": "COc1ccc2cc(ccc2c1)[C@H](C)C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "theophylline": "Cn1c2[nH]cnc2c(=O)n(C)c1=O",
    "nicotine": "CN1CCC[C@H]1c1cccnc1",
    "salbutamol": "CC(C)(C)NC[C@H](O)c1ccc(O)c(CO)c1",
    "adrenaline": "CNC[C@H](O)c1ccc(O)c(O)c1",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "serotonin": "NCCc1c[nH]c2ccc(O)cc12",
    "melatonin": "COc1ccc2[nH]cc(CCNC(C)=O)c2c1",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "procaine": "CCN(CC)CCOC(=O)c1ccc(N)cc1",
    "benzocaine": "CCOC(=O)c1ccc(N)cc1",
    "metformin": "CN(C)C(=N)NC(N)=N",
    "propranolol": "CC(C)NC[C@H](O)COc1cccc2ccccc12",
    "atenolol": "CC(C)NC[C@H](O)COc1ccc(CC(N)=O)cc1",
    "metoprolol": "COCCc1ccc(OC[C@@H](O)CNC(C)C)cc1",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc12",
    "phenobarbital": "CCC1(c2ccccc2)C(=O)NC(=O)NC1=O",
    "phenytoin": "O=C1NC(=O)C(N1)(c1ccccc1)c1ccccc1",
    "carbamazepine": "NC(=O)N1c2ccccc2C=Cc2ccccc12",
    "sulfamethoxazole": "Cc1cc(NS(=O)(=O)c2ccc(N)cc2)no1",
    "sulfanilamide": "Nc1ccc(cc1)S(N)(=O)=O",
    "trimethoprim": "COc1cc(Cc2cnc(N)nc2N)cc(OC)c1OC",
    "isoniazid": "NNC(=O)c1ccncc1",
    "metronidazole": "Cc1ncc([N+](=O)[O-])n1CCO",
    "ciprofloxacin": "O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O",
    "fluoxetine": "CNCC[C@@H](Oc1ccc(cc1)C(F)(F)F)c1ccccc1",
    "celecoxib": "Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F",
    "diclofenac": "OC(=O)Cc1ccccc1Nc1c(Cl)cccc1Cl",
    "mefenamic acid": "Cc1cccc(Nc2ccccc2C(=O)O)c1C",
    "omeprazole": "COc1ccc2[nH]c(nc2c1)S(=O)Cc1ncc(C)c(OC)c1C",
    "furosemide": "NS(=O)(=O)c1cc(C(=O)O)c(NCc2ccco2)cc1Cl",
    "captopril": "C[C@H](CS)C(=O)N1CCC[C@H]1C(=O)O",
    "baclofen": "NCC(CC(=O)O)c1ccc(Cl)cc1",
    "gabapentin": "NCC1(CC(=O)O)CCCCC1",
    "ketoprofen": "CC(C(=O)O)c1cccc(c1)C(=O)c1ccccc1",
    "warfarin": "CC(=O)CC(c1ccccc1)c1c(O)c2ccccc2oc1=O",
    "zolmitriptan": "CN(C)CCc1c[nH]c2ccc(C[C@H]3COC(=O)N3)cc12",
    "bupropion": "CC(NC(C)(C)C)C(=O)c1cccc(Cl)c1",
    "haloperidol": "O=C(CCCN1CCC(O)(CC1)c1ccc(Cl)cc1)c1ccc(F)cc1",
    "fluconazole": "OC(Cn1cncn1)(Cn1cncn1)c1ccc(F)cc1F",
}

# Rings 1 and 2 are a core's, 3 that of an end. {a} takes a linker with its end, {b} a small group.
ON_CARBON = (
    "c1cc({a})ccc1{b}",
    "c1cc({a})cc({b})c1",
    "c1ccc({a})c({b})c1",
    "n1cc({a})ccc1{b}",
    "n1cc({a})cnc1{b}",
    "n1c({a})cccc1{b}",
    "c1sc({a})nc1{b}",
    "n1(C)nc({a})cc1{b}",
    "c1c({b})oc({a})c1",
    "c1c({b})cc2c(c1)c({a})c[nH]2",
    "c1c({b})ccc2c1nc({a})[nH]2",
    "c1c({b})ccc2c1cc({a})cn2",
    "c1c({b})ccc2c1OCC({a})O2",
)
ON_NITROGEN = ("C1CN({a})CCC1{b}", "C1CN({a})CCN1{b}", "C1CN({a})CC1{b}", "C1C({b})OCCN1{a}")
LINKERS = (
    "",
    "C(=O)N",
    "NC(=O)",
    "OC",
    "CO",
    "C",
    "CC",
    "S(=O)(=O)N",
    "NS(=O)(=O)",
    "CNC(=O)",
    "C(=O)NC",
    "C(O)C",
    "OCC",
    "C(=O)",
)
LINKERS_OF_NITROGEN = ("C(=O)", "S(=O)(=O)", "C", "CC", "C(=O)C", "CC(=O)N")
ENDS = (
    "c3ccccc3",
    "c3ccc(F)cc3",
    "c3ccc(Cl)cc3",
    "c3cccc(OC)c3",
    "c3ccccc3C",
    "c3ccncc3",
    "c3cccnc3",
    "c3cccs3",
    "c3ccco3",
    "c3cn(C)cn3",
    "C3CC3",
    "C3CCCC3",
    "C3CCOCC3",
    "C(C)C",
    "CC(C)C",
    "CCOC",
)
SMALL = (
    "F",
    "Cl",
    "C",
    "CC",
    "OC",
    "O",
    "N",
    "C#N",
    "C(F)(F)F",
    "N(C)C",
    "C(N)=O",
    "C(=O)O",
    "C(C)=O",
    "S(C)(=O)=O",
    "NC(C)=O",
)
SMALL_OF_RINGS = ("C", "C(C)=O", "C(N)=O", "S(C)(=O)=O", "CCO", "C(=O)OC")


def drawn_molecules(seed: int) -> Iterator[str]:
    """Endless SMILES of drug-like molecules, as RDKit writes them; no two are alike."""
    from rdkit import Chem

    rng = np.random.default_rng(seed)
    seen = set()
    while True:
        smiles = Chem.MolToSmiles(as_molecule(_drawn(rng)))
        if smiles not in seen and is_drug_like(smiles):
            seen.add(smiles)
            yield smiles


def _drawn(rng: np.random.Generator) -> str:
    """A core with a small group, and a linker with its end."""

    def one(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    if rng.random() < len(ON_NITROGEN) / len(ON_NITROGEN + ON_CARBON):
        core = one(ON_NITROGEN)
        linker = one(LINKERS_OF_NITROGEN)
        small = one(SMALL_OF_RINGS)
    else:
        core = one(ON_CARBON)
        linker = one(LINKERS)
        small = one(SMALL)
    return core.format(a=linker + one(ENDS), b=small)


def is_drug_like(smiles: str) -> bool:
    """Whether a molecule meets Lipinski's rules without exception, and Veber's."""
    from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

    molecule = as_molecule(smiles)
    limits = (
        (Descriptors.MolWt, 500),
        (Crippen.MolLogP, 5),
        (rdMolDescriptors.CalcNumHBD, 5),
        (rdMolDescriptors.CalcNumHBA, 10),
        (rdMolDescriptors.CalcNumRotatableBonds, 10),
        (rdMolDescriptors.CalcTPSA, 140),
    )
    return all(measure(molecule) <= most for measure, most in limits)
