"""`onhand rename`: a SKU gets a new code."""

import asyncio
from typing import Annotated

import typer

from adapters.cli.options import DEFAULT_DATA_DIR, TIMEOUT_S, DataDir, Gateway, gateway_of
from adapters.cli.output import say


def rename(
    sku: Annotated[str, typer.Argument(help="The SKU's code, or one that it had before.")],
    code: Annotated[str, typer.Argument(help="Its new code.")],
    gateway: Gateway = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give a SKU a new code. The old one goes on meaning it: on orders, receipts and in files.

    Example: onhand rename TEA-500 TEA-500G
    """
    changed = asyncio.run(_rename(gateway_of(gateway, data_dir), sku, code))
    say(f"renamed: {sku} is {code} now" if changed else f"{sku} is {code} already")


async def _rename(gateway: str, sku: str, code: str) -> bool:
    from adapters.client import Client

    async with Client.connect(gateway, timeout_s=TIMEOUT_S) as client:
        return await client.rename_sku(sku, code)
