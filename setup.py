"""Builds LifeLab from settings.ini. The stage notebooks and the data cards travel inside the package, so that `lifelab run` works anywhere."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

STAGES = ['collect', 'clean', 'balance', 'tokenize', 'pretrain', 'finetune', 'evaluate', 'serve']
needs = lambda name: cfg.get(f'{name}_requirements', '').split()
of_stage = {s: needs(s) for s in STAGES}
core = cfg['requirements'].split()
runs = sorted({r for rs in of_stage.values() for r in rs})

# Folders outside lifelab/ are shipped as lifelab._assets.*; core.lab.asset finds them in either place.
assets = {'lifelab._assets.nbs': 'nbs', 'lifelab._assets.data_cards': 'data_cards'}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license=cfg['lib_license'],
    keywords=cfg['keywords'], python_requires=f">={cfg['min_python']}",
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Bio-Informatics', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=[*find_packages(include=['lifelab', 'lifelab.*']), *assets], package_dir=assets,
    package_data={'lifelab._assets.nbs': ['*.ipynb', '*/*.ipynb', '*/*.yaml', '*/*.json', '*/*.html', '*/*.js', '*/*.css'], 'lifelab._assets.data_cards': ['*.md']},
    install_requires=core+runs,
    extras_require={**of_stage, 'all': runs, 'remote': needs('remote'), 'world': needs('world'), 'lab': needs('lab'), 'dev': needs('dev')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
