import lamindb as ln
from guide_models import MyDataModule, MyModel
from lamindb.integrations.lightning import SaveConfigCallback
from lightning.pytorch.cli import LightningCLI

ln.track()


def cli_main() -> None:
    LightningCLI(
        model_class=MyModel,
        datamodule_class=MyDataModule,
        save_config_callback=SaveConfigCallback,
    )


if __name__ == "__main__":
    cli_main()
