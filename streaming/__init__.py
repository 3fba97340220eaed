"""The server process: asyncio, WebRTC and HTTP; imports no torch."""
