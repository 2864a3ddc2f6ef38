"""An SMTP server (aiosmtpd) and a client (smtplib); each prints what it sees."""

import asyncio
import smtplib
import ssl
import sys


def server(chain, key):
    from aiosmtpd.smtp import SMTP

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            secure = session.ssl is not None
            print("MAIL", envelope.mail_from, *envelope.rcpt_tos, "tls" if secure else "plain",
                  "bytes=%d" % len(envelope.content), flush=True)
            return "250 kept"

    context = None
    if chain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
    async def serve():
        def session():
            return SMTP(Handler(), hostname="mx.example.com", tls_context=context,
                        require_starttls=context is not None)

        server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0)
        print("PORT", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(serve())


def client(port, ca, size):
    with smtplib.SMTP("127.0.0.1", int(port), timeout=20) as smtp:
        code, answer = smtp.ehlo("client.example.com")
        if code != 250:
            print("REFUSED", code, answer, flush=True)
            return
        print("BEFORE", *sorted(smtp.esmtp_features), flush=True)
        if ca:
            context = ssl.create_default_context(cafile=ca)
            # smtplib takes the name that it has connected to.
            smtp._host = "mx.example.com"
            smtp.starttls(context=context)
            print("TLS", smtp.sock.version(), flush=True)
            smtp.ehlo("client.example.com")
            print("AFTER", *sorted(smtp.esmtp_features), flush=True)
        body = "Subject: hello\r\n\r\n" + ("x" * 70 + "\r\n") * int(size)
        try:
            smtp.sendmail("a@example.com", ["b@example.com"], body)
            smtp.sendmail("c@example.com", ["d@example.com"], body)
            print("SENT", flush=True)
        except smtplib.SMTPException as error:
            print("REFUSED", error, flush=True)


if sys.argv[1] == "server":
    server(*sys.argv[2:])
else:
    client(*sys.argv[2:])
