"""`python -m trainer VERB` is `tokenformer VERB`."""

from trainer.cli import main

if __name__ == "__main__":
    main()
