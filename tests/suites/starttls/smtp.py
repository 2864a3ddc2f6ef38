"""An SMTP server (aiosmtpd) and a client (smtplib); each prints what it sees."""

import smtplib
import ssl
import sys
import time


def server(chain, key):
    from aiosmtpd.controller import Controller

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
    controller = Controller(Handler(), hostname="127.0.0.1", port=0, tls_context=context,
                            require_starttls=context is not None)
    # It asks itself at the port that it was given, which is not one.
    controller._trigger_server = lambda: None
    controller.start()
    print("PORT", controller.server.sockets[0].getsockname()[1], flush=True)
    while True:
        time.sleep(60)


def client(port, ca, size):
    with smtplib.SMTP("127.0.0.1", int(port), timeout=20) as smtp:
        smtp.ehlo("client.example.com")
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
