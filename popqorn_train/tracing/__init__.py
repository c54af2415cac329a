"""What does the user's forward do?

Goes in: an ``nn.Module`` and example inputs. Comes out: the recorded steps, for any batch size, and
which of them lead from the tensor that moves to the first recurrent layer. Refuses what cannot be
recorded. Must not know: how anything is bounded.
"""
