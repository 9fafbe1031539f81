"""What the package says about itself that needs the address of the repository."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = re.compile(r"(!\[[^]]*\]\()(?!https?:)")
LINK = re.compile(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)")


class AddressHook(MetadataHookInterface):
    """Adds the project's URLs, and a README whose links lead to the repository."""

    def update(self, metadata: dict) -> None:
        repository = self.config["repository"]
        readme = Path(self.root, "README.md").read_text("utf-8")
        readme = IMAGE.sub(rf"\g<1>{repository}/raw/main/", readme)
        readme = LINK.sub(rf"\g<1>{repository}/blob/main/", readme)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        metadata["urls"] = {
            "Documentation": self.config["documentation"],
            "Source": repository,
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            "Issues": f"{repository}/issues",
            "Paper": "https://arxiv.org/abs/2607.01455",
        }
